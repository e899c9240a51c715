"""The matrix of cells, each step in a process of its own."""
