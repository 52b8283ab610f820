"""A training run: its folder, its loop, and its stages in order."""
