"""`elbo report`: one run or several on a page.

Begin with gather.py, which reads a run's folder into the RunFacts of facts.py: log_history.py reads its logs, results.py the
results in it, thumbnails.py its images. plots.py draws them (drawing.py makes SVG), page.py fills the templates, and
result.py holds the records of --json.
"""
