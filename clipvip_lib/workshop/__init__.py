"""Stages and the processes that run them, notebooks executed into pages. Nothing here knows of CLIP."""
