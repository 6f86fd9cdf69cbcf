"""`elbo sample` draws images from a run. Begin with draw.py."""
