"""Run the steps of a build and reuse finished ones: the store, the runner, the lock and the log."""
