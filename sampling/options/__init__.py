"""What a person asks for: the configuration, its presets, and how the command line and files say it. No torch."""
