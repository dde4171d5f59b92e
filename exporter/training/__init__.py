"""The stages in PyTorch and what they are made of."""
