"""The mathematics, after Kingma & Gao 2023: pure functions of numbers and tensors, which open no files and print nothing.

Read prediction.py first, then weighting.py and loss.py.
"""
