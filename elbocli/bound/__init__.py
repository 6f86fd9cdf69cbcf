"""`elbo bound`: estimate -log p of images with a run, classify them, and check Kingma & Gao's theorem 1.

Begin reading with measure.py, which evaluates a run's network on images at many noise levels.
"""
