"""Ranges of activations on images: measured, kept in a table, and turned into INT8 scales."""
