"""The command line's own: options that commands share, completion, progress bars."""
