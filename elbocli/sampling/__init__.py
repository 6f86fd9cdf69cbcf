"""Draw examples from a network: samplers, noise levels, guidance. Begin with draw.py."""
