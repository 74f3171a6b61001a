"""Watching a run while it is drawn: `fiducial watch`. It reads what the run writes, and writes nothing."""
