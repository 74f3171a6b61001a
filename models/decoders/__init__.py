"""Codecs, which make pixels of latents, a file for each kind."""
