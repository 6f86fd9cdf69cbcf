"""The version of elbo, in this place alone."""

__version__ = "0.2.0"
