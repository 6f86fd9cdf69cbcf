"""`elbo train`. Begin with `step.py`, one update from top to bottom, and `loop.py`, a run from its start to its end.

`batches.py` draws the images, noise and times of a step. `state.py` holds the network, optimizer and averages, and distributes
the network over processes. `recorder.py` writes logs, validates and draws previews; `scores.py` scores samples. `plan.py` estimates memory and operations
before training.
"""
