"""Sweeps: a grid of configurations narrowed down round by round, with common random numbers and paired intervals."""
