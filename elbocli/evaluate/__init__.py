"""`elbo eval`: score images against a reference.

Begin with scoring.py, which opens the files, checks that they are comparable, and computes the scores.
extract.py opens samples and references and extracts their features; settings.py holds the settings and the protocols;
result.py reads and writes the JSON result, and fills in the template of the score card, card.md.
"""
