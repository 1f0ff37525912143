"""The names of the ways in which the frames of a video see each other; clip_vip.py says what each one is.

They stand alone here, so that arithmetic about models (flops.py, the model card) knows them without a model.
"""

ATTENTIONS = ("proxy", "full", "mean_pool", "sequential")

#: Attentions that see all frames as one sequence, and so have proxies and a temporal embedding.
JOINT = ("proxy", "full")
