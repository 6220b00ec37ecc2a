"""What a run will take, told before anything runs."""
