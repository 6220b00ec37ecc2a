"""A run as a repository of the hub, and back."""
