"""Results: what numbers are, written and read as JSON, chosen and compared. They know nothing of pages, and need no torch."""
