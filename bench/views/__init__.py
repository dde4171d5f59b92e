"""Display of results to people, and their conversion for other programs."""
