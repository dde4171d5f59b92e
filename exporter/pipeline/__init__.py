"""The commands `build`, `ablate`, `quantize` and `new`, and the steps of a build."""
