"""`elbo ema`: averages of the weights made after training; command.py does all of it."""
