"""`elbo presets`: list them, show one, write one to edit."""
