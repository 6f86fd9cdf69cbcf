"""`elbo eval`: images scored against a reference.

Begin with scoring.py, which runs the command from opened files to a result. extract.py opens samples and references and
extracts their features; checks.py refuses what doesn't go together; settings.py holds the settings and the protocols.
result.py is the JSON, card.py the page of Markdown.
"""
