"""What comes from the user, checked: samples, pictures, checkpoints, dotted paths."""
