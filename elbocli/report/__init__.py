"""`elbo report`: one run or several on a page.

Begin with gather.py, which reads a run's folder into RunFacts, with a RunReport for --json: log_history.py reads its logs,
results.py the results in it, thumbnails.py its images. page.py draws them and fills the templates.
"""
