"""What can draw the images of a run, one a file."""
