"""One module for each command: `run(arguments)` does the work and returns an exit code."""
