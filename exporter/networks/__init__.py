"""The PyTorch network that passes through the stages: weights, masks, shrink plan, memory layout."""
