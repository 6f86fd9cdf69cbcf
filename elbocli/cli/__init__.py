"""The command line: parse, call one loop, echo. Heavy imports wait until a command runs."""
