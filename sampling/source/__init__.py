"""Sources of a run's images, one a file."""
