"""Faces over one VAE: train, reconstruct, sample, morph, arith."""
