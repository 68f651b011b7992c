"""One package a pipeline: ``pipeline.py`` wires, ``nodes.py`` computes."""
