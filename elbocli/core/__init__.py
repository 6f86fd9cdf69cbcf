"""The mathematics of the paper: pure functions of numbers and tensors, which open no files and print nothing.

Read prediction.py first, then weighting.py and loss.py.
"""
