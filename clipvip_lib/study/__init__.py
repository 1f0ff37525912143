"""The study: the graph of its stages (which arm is trained on what, which notebook reads it), what each stage does, and
what is made of the results. It runs on ``clipvip_lib/workshop``, which knows nothing of CLIP.
"""
