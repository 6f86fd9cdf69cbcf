"""Code that all commands share: `commands` (click classes, messages), `types` and `options` of the command line,
`progress_bar` (counts on stderr) and `figure` (plots over λ). Begin with `commands`.
"""
