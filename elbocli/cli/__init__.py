"""The shared part of all commands: `commands` (click classes, messages), `types` and `options` (of the command line),
`progress_bar` (counts on stderr) and `figure` (plots over λ). Begin with `commands`.
"""
