"""`elbo train`: train a network. Begin with `step.py`, one update, and `loop.py`, a whole run.

`batches.py`: images, noise and times of a step. `state.py`: network, optimizer and averages.
`recorder.py`: logs. `validation.py`: scores of held-out images. `previews.py`: pictures. `scores.py`: scores of samples.
`targets.py`: external loggers. `plan.py`: estimated memory and operations.
"""
