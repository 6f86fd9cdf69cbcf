"""`elbo weights` lists, shows, checks and plots weightings."""
