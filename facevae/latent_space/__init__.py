"""What one does with a trained VAE: encode, decode, sample, morph, edit."""
