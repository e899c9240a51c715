"""Kinds of TARGET: each file turns one kind into a verified FP32 reference."""
