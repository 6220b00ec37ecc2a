"""Runs as they stand, read from their folders alone, whoever works in them; and how a terminal shows them."""
