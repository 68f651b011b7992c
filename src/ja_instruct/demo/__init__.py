"""What only the environment ``demo`` needs."""
