"""What makes pixels of latents, a file for each kind."""
