"""Commands: parse flags, call the parts, decide the exit code."""
