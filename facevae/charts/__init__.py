"""Curves and histograms. Need the extra `plot`."""
