"""Trained networks of others: their weights fetched from a package index, read without running their code, converted."""
