"""From a pretrained PyTorch checkpoint to a gated int8 artifact."""
