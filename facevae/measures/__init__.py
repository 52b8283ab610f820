"""Losses and metrics, and the figures made of them."""
