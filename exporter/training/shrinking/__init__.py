"""Structured pruning: which channels and blocks can go, which do, and what is left of a network then.

What is left is said by a `Plan` (`plan.py`), and made by `rebuild`. `narrowing.py` finds the plan that
meets a target: from what belongs together (`structure.py`), what it matters (`importance.py`, `damage.py`),
what it costs (`layer_costs.py`, `kernel_table.py`), and a walk between the two (`allocation.py`).
"""
