"""`elbo train`. Begin with `step.py`, one update from top to bottom, and `loop.py`, a run from its start to its end.

`batches.py` draws all that a step needs, `state.py` holds what it changes, `parallel.py` spreads the network over processes.
`recorder.py`, `validate.py` and `log_targets.py` measure and log; `plan.py` counts memory and operations beforehand.
"""
