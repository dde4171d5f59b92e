"""From a recipe or a file to an artifact or a model: build, ablate, quantize, new."""
