"""`elbo eval`: score images against a reference.

Begin with scoring.py. extract.py: features of images. settings.py: settings and protocols. result.py: JSON result.
"""
