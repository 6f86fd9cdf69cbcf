"""`elbo eval`: images scored against a reference."""
