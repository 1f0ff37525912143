"""Auxiliary captions: OFA on the middle frame of every clip."""
