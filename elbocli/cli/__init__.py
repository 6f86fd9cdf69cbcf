"""Code shared by all commands: `commands` (command line), `progress_bar` (progress on stderr), `figure` (plots over λ).
Begin with `commands`.
"""
