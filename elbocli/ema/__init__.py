"""`elbo ema`: averages of the weights made after training."""
