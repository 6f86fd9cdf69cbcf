"""The paper: pure functions of numbers and tensors. No files, no devices, no printing.

Begin with prediction.py (λ, and what a network predicts), weighting.py and loss.py; elbo.py has the bound, schedule.py
draws levels and adaptive.py fits them. samplers.py and sampling.py draw images; metrics/ and estimate.py judge them.
"""
