"""Training: one loop for all stages, and one trainer a stage."""
