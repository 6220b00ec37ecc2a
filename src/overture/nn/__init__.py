"""Parts that every network here is made of."""
