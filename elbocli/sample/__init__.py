"""`elbo sample`: images drawn from a run. Begin with draw.py."""
