"""The networks of a model: the VAE and the priors over its latents."""
