"""The version of the package, alone in a file so that nothing else loads to read it."""

__version__ = "0.1.0"
