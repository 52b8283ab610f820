"""Attributes of faces: their names, directions and scorers."""
