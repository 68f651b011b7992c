"""Weights on disk: directories, the hub, checksums, loading, merging, cards, GGUF."""
