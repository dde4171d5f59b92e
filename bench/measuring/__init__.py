"""Measuring: fresh processes that take turns, what they find, and the state of the host meanwhile."""
