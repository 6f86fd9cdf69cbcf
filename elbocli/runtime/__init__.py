"""The machine: `device` (device, precision, memory), `processes` (ranks of a run), `background` (threads, signals),
`progress` (the logger and the counts that commands show). Begin with `device`.
"""
