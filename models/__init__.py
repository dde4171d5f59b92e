"""Reference models: each folder is what a user's own repository looks like."""
