"""Descriptions, tables and plots of runs and files, and one page of HTML about them.

describe.py describes any file of elbo's, and runs_table.py several runs side by side. figure.py and plots.py draw curves over λ.
page.py puts runs, loss logs, results and images on one page, and makes a run's model card; begin there at `render_page`.
"""
