"""Statistics of measurements: percentiles, comparisons, warnings."""
