"""The mathematics of the paper, as pure functions of numbers and tensors, which open no files and print nothing.

Start with prediction.py (λ, and the quantity that a network predicts), weighting.py and loss.py. elbo.py has the bound,
schedule.py the noise schedules, adaptive.py their fit to errors, samplers.py and sampling.py the sampling of images, and
metrics/ and estimate.py the scores.
"""
