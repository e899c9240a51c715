"""Precision `auto`: the least predicted time whose loss of accuracy stays within a budget."""
