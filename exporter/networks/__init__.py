"""A PyTorch network on its way through the stages: weights, masks, shrink plan, memory layout."""
