"""The machine: devices, processes, threads, signals and progress. Begin with `device`."""
