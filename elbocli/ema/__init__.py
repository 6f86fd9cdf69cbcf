"""`elbo ema`: make an average of the weights after training (see command.py)."""
