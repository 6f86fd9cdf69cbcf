"""`elbo report`: an HTML page about runs, or a model card.

Begin at `RunFacts` in gather.py. Its properties read a run, its logs (log_history.py), objective (objective.py), results (results.py)
and pictures (thumbnails.py). summary.py reduces the facts of one run or of several to rows of tables and to the JSON. page.py draws
plots of the facts and fills the templates page.html, several.html and model_card.md.
"""
