"""Reference definitions: one architecture family is one file that reads like its paper.

What is not a family begins with an underscore: `deploykit list` reads the cards of all others.
"""

from deploykit.models._registry import families, get, names

__all__ = ["families", "get", "names"]
