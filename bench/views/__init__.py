"""How a person or another program sees results."""
