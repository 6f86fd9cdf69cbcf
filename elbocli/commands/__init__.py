"""The commands: each file declares the options of one command, makes one library call, and prints the result."""
