"""Bundles on a Ray cluster: predictions for more images than one machine should do.

``deploykit.ray.Predictor`` is for pipelines of one's own. Ray is imported where it is used.
"""

from deploykit.ray.predictor import Predictor

__all__ = ["Predictor"]
