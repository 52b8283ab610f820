"""Faces in photos: where they are, and how they are framed."""
