"""The paper: pure functions of numbers and tensors. No files, no devices, no printing.

Start with prediction.py (λ, and the quantity that a network predicts), weighting.py and loss.py. elbo.py has the bound,
schedule.py the noise schedules, adaptive.py their fit to errors, samplers.py and sampling.py the sampling of images, and
metrics/ and estimate.py the scores.
"""
