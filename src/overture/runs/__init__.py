"""A run: its config, its directory, its stages, and several of them side by side."""
