"""`elbo report`: an HTML page about runs, or a model card.

Begin at `RunFacts` in gather.py. Its attributes are a run's settings and pictures, logs (log_history.py), objective (objective.py)
and results (results.py). summary.py reduces the facts of one run or of several to rows of tables. page.py draws plots of the facts
and fills the templates page.html, several.html and model_card.md.
"""
