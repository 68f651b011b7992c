"""GPU kernels of the generation engine."""
