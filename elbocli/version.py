"""The version of elbo, defined only in this file."""

__version__ = "0.2.0"
