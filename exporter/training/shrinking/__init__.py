"""Structured pruning: remove whole channels and blocks of a network until it meets a target.

A `Plan` (`exporter.networks.shrink_plan`) lists what a network keeps, and `rebuild` applies it.
`narrowing.py` finds the plan that meets a target. It needs the channels that must be removed together
(`structure.py`), how important they are (`importance.py`, `damage.py`), what they cost (`layer_costs.py`,
`kernel_table.py`), and a search that weighs damage against cost (`allocation.py`).
"""
