"""Autoencoders by what they make of images: one pass over the images, the result, its page."""
