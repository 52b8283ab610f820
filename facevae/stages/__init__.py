"""The stages of a training, one step of each at a time."""
