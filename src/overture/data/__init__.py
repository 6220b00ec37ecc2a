"""Images and tokens: where they come from, how they are cut, and in which order training sees them."""
