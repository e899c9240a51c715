"""Requests of many callers gathered into few batches."""
