"""Steps that are run once: the store, the runner, the lock, the log and where things come from."""
