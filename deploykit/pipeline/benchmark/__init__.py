"""``deploykit bench``: cells of the matrix in processes of their own, and what became of them."""
