"""What the benchmark and the test of killed runs share."""
