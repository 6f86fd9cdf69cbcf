"""`elbo train`: a denoiser trained under any weighting and schedule, so that nothing is lost when it stops."""
