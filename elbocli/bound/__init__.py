"""`elbo bound`: estimate -log p of images, classify them, and check Kingma & Gao's theorem 1. Begin with measure.py."""
