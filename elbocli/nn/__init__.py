"""Networks, their averages and their presets."""
