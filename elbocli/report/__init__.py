"""`elbo report`: an HTML page about runs, or a model card.

gather.py reads a run, its logs (log_history.py), objective (objective.py), results (results.py) and pictures (thumbnails.py), into
`RunFacts`; begin there. summary.py reduces the facts of one run or of several to rows of tables and to the JSON. page.py draws
plots of the facts and fills the templates page.html and several.html; card.py fills model_card.md.
"""
