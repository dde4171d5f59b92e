"""Measure models in fresh processes that take turns, and record the state of the host meanwhile."""
