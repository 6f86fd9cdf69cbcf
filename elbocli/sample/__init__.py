"""`elbo sample`: images drawn from a run.

Begin with draw.py, which runs the command. guided.py is the denoiser, decode.py turns what it draws into pixels, and
distributed.py shares the work among processes.
"""
