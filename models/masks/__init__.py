"""Masks as values: run lengths, polygons, rendering, non-maximum suppression."""
