"""Shared foundations of this package: errors, files, arrays, statistics, policy, progress."""
