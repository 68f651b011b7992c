"""Checks before the first node runs: parameters, inputs, outputs, devices, memory, disk."""
