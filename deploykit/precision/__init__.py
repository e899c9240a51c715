"""Conversion of a verified FP32 graph to each lower precision, with what it needs measured."""
