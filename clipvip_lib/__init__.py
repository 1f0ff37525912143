"""CLIP-ViP as a study that anyone can run. Read ``models/proxy_attention.py`` first: it is the idea."""

from clipvip_lib.registration import register

__version__ = "0.1.0"

register()
