"""Networks, presets and feature extractors.

Start with networks/__init__.py, which defines the interface of a network; networks/ has one module per network family.
presets/ has YAML files, each with a network and training settings. extractors/ computes features for scores.
denoiser.py wraps a network for samplers and bounds. weights.py averages and transfers weights for training.
"""
