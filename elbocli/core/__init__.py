"""The mathematics, after Kingma & Gao 2023: pure functions of numbers and tensors.

Read prediction.py first, then weighting.py, schedule.py and objective.py.
"""
