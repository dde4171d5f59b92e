"""Readers and checks of the user's inputs: samples, images, checkpoints, factories and files."""
