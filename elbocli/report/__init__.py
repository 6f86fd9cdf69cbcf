"""`elbo report`: an HTML page about one run or several.

gather.py reads runs, log_history.py logs, results.py results of commands, thumbnails.py images; page.py writes the page.
"""
