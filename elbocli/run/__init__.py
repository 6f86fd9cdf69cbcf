"""A run on disk. Start with train_settings.py, which declares all settings, and settings.py, which merges settings.

folder.py locks the run folder during training, and writes config.yaml and status.json. open.py opens a trained run for
sampling and scoring, or as the start of another run (--init).
"""
