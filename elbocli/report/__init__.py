"""`elbo report` writes an HTML page about one or more runs, or writes a model card.

gather.py reads runs, log_history.py logs, results.py results of commands, thumbnails.py images; page.py writes the page,
card.py the card.
"""
