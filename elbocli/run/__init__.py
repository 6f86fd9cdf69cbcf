"""A run on disk: what it was trained with, the folder while it is held, and the trained network in it."""
