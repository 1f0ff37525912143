"""The workshop: stages, their cache, the workers that run them, and notebooks executed into pages.

It knows nothing of CLIP. The study's graph, which stages there are and what each does, is in ``clipvip_lib/study``.
"""
