"""`elbo train`: train a network. Begin with `step.py`, a whole update, and `loop.py`, a whole run.

`batches.py` draws the images, noise and times of a step. `state.py` holds the network, optimizer and averages, and distributes
the network over processes. `recorder.py` writes logs, validates and draws previews; `scores.py` scores samples.
`plan.py` estimates memory and operations before training.
"""
