"""The PyTorch stages of a recipe, and the training, pruning, distillation and QAT code that they use."""
