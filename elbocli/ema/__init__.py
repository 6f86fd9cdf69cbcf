"""`elbo ema`: average the weights of a run after training."""
