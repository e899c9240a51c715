"""Bundles on disk: the manifest, and the golden sample."""
