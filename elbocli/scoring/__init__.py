"""`elbo eval`: score images against a reference.

opening.py opens SAMPLES and --ref, makes the extractor, and refuses files that don't fit (`Opened`). extract.py
computes the features of the opened images, or takes saved ones. scoring.py computes the metrics of these features, and returns
the command's result (`EvalResult` in result.py); begin there. settings.py holds options and protocols.
"""
