"""`elbo sample`: images drawn from a run.

Begin with draw.py, which shares the work among processes. denoise.py has the guided denoiser, and the decoder of latents.
"""
