"""GPU memory that a stage needs."""
