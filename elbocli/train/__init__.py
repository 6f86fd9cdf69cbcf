"""`elbo train`: train a network. Begin with `step.py`, one update, and `loop.py`, a whole run.

`batches.py`: images, noise and times of a step. `state.py`: network, optimizer and averages.
`recorder.py`: logs, validation and previews. `scores.py`: scores of samples. `plan.py`: estimated memory and operations.
"""
