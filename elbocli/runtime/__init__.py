"""The machine: `device` (device, precision, memory), `processes` (ranks of a run), `background` (threads, signals),
`progress` (the logger, and counts that commands display). Start with `device`.
"""
