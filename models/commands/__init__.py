"""The commands of `python -m models`, a file for each."""
