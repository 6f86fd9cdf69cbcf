"""Networks, presets and feature extractors. Start with networks/__init__.py, the interface of a network.

networks/: one module per network family. presets/: YAML files of networks and training settings.
extractors/: features for scores. denoiser.py: denoisers for samplers and bounds. weights.py: averages, reuse with new classes.
"""
