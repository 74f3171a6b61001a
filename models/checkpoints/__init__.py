"""How weights are found, read, recognised and converted."""
