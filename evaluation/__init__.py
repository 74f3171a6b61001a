"""The evaluator: images in, numbers that say what they are out. Usable alone: it knows nothing of how images were drawn."""
