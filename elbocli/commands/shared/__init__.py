"""Code shared by all commands. Begin with `commands`."""
