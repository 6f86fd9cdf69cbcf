"""`elbo report`: an HTML page about runs, or a model card.

gather.py reads runs; page.py writes the page, card.py the card.
"""
