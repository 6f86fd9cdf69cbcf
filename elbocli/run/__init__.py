"""A run on disk.

train_settings.py declares all settings; settings.py merges settings. folder.py writes the run folder; open.py opens trained runs.
examples.py reads a dataset's rows as a network sees them, for training, validation and bounds.
"""
