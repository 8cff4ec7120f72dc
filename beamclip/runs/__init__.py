"""A run on disk: its folder, its records, and the copy of both beside its checkpoints."""
