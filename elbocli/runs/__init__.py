"""A run on disk: its settings, its folder, and opening it.

train_settings.py declares all settings. config.py reads and writes config.yaml. settings.py merges settings of all sources;
start with its `resolve`. folder.py writes the run folder; open.py opens trained runs. examples.py reads a dataset's rows as a
network sees them, for training, validation and bounds.
"""
