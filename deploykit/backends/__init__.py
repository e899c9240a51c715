"""Backends run or compile a graph; none imports another."""
