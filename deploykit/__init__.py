"""From a PyTorch image classifier to a verified, measured TensorRT engine."""

from deploykit._version import __version__

__all__ = ["__version__"]
