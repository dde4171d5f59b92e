"""Metrics of model outputs, one per file, computed with numpy only."""
