"""`elbo report`: an HTML page about one run or several.

Begin with gather.py, which reads a run's folder into RunFacts, whose field `report` --json prints. log_history.py reads the
logs, results.py the results of other commands, thumbnails.py the images. page.py draws the plots and fills in the templates.
"""
