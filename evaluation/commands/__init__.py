"""The commands of `python -m evaluation`, a file each: options, and what is done with them."""
