"""Learning from other networks: what teachers are, what is taken from them, and how it is weighed."""
