"""Whole tasks, made of everything else: drawing and evaluating in one command."""

import fiducial  # noqa: F401 (which finds the packages of a checkout)
