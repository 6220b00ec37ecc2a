"""Training: one readable loop per stage, and what the loops share."""
