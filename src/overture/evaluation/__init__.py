"""Judging: feature networks, distances, reconstruction quality, usage, and the protocol beside every number."""
