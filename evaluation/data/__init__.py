"""Images and references: what files hold, and what a reader has to know of it."""
