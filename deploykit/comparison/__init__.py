"""Comparison of outputs and of graphs: validation, layer by layer."""
