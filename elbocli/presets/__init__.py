"""`elbo presets`: list presets, show one, or write one to a file to edit."""
