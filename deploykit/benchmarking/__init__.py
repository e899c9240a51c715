"""Benchmarks: the harness, its statistics, the machine, the matrix of cells, and reports."""
