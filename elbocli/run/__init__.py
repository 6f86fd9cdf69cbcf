"""A run on disk. Start with train_settings.py, which declares each setting once, and settings.py, which merges them.

folder.py holds the folder while a run trains, with its record and status. open.py opens a trained run for sampling and
scoring, and for a run that begins from its weights.
"""
