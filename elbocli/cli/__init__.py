"""Code that all commands share: `commands` (the command line), `progress_bar` (counts on stderr) and `figure` (plots over λ).
Begin with `commands`.
"""
