"""`elbo train`. Begin with `step.py`, one update from top to bottom, and `loop.py`, a run from its start to its end.

`batches.py` draws all that a step needs, `state.py` holds what it changes and spreads the network over processes.
`recorder.py` measures, draws previews and logs; `plan.py` counts memory and operations beforehand.
"""
