"""The networks: the diffusion transformer, the autoencoder, and how their weights are read."""

from models.dit import DiT, DiT_models

__all__ = ["DiT", "DiT_models"]
