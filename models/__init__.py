"""The networks: the diffusion transformer, the autoencoder, and how their weights are read."""

import fiducial  # noqa: F401 (which finds the packages of a checkout)

TYPE_CHECKING = False  # typing's, which takes longer to import than all that commands do before Ctrl-C is theirs
if TYPE_CHECKING:
    from fiducial.models.networks.dit import DiT, DiT_models

__all__ = ["DiT", "DiT_models"]


def __getattr__(name: str) -> object:
    """`DiT` and `DiT_models`, imported when they are asked for: commands show their help without torch."""
    if name in __all__:
        from fiducial.models.networks import dit

        return getattr(dit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
