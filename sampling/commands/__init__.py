"""The commands about runs, one a file."""
