"""What a run leaves on the disk: folder, manifest, images, and the records by which they are checked and restored. No torch."""
