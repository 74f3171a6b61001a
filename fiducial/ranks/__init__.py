"""Processes that work together: how they find each other, what they tell each other, and that they end together."""
