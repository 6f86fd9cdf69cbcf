"""`elbo eval`: images scored against a reference.

Begin with scoring.py, which runs the command from opened files to a result, and refuses what doesn't go together.
extract.py opens samples and references and extracts their features; settings.py holds the settings and the protocols;
result.py is the JSON, and fills the score card, card.md.
"""
