"""Understanding tokens and priors: one file an instrument."""
