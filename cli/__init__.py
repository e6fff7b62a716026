"""The command line, `moorage COMMAND`."""
