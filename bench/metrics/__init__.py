"""Figures of merit of outputs, one a file, in numpy alone."""
