"""Command line: `astra-trl COMMAND`."""
