"""The networks: the diffusion transformer, the autoencoder, and how their weights are read."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.dit import DiT, DiT_models

__all__ = ["DiT", "DiT_models"]


def __getattr__(name: str) -> object:
    """`DiT` and `DiT_models`, imported when they are asked for: commands show their help without torch."""
    if name in __all__:
        from models import dit

        return getattr(dit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
