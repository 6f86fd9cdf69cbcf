"""Networks and what belongs to them.

networks/ has a module for each kind, and networks/__init__.py says what a network is: start there. presets/ are YAML files
that choose one with its training settings; extractors/ compute features for scores. The other modules serve those who use
networks: denoiser.py samplers and bounds, weights.py training.
"""
