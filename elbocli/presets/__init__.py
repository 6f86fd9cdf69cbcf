"""`elbo presets`: list, show and write presets."""
