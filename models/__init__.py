"""Reference models. Each folder is laid out like a user's own repository."""
