"""Options of a run: the configuration, its presets, and how the command line and files say it. No torch."""
