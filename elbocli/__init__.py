"""elbo: diffusion objectives as weightings over noise levels, from packing images to scoring samples."""

__version__ = "0.1.0"
