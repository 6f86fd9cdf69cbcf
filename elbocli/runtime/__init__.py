"""The machine: processes, device, signals, threads, and the progress that commands report."""
