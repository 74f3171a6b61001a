"""Files of a run: folder, manifest, images, and the records by which they are checked and restored. No torch."""
