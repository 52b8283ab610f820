"""A model measured on faces, beside the baselines."""
