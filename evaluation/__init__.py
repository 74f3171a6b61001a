"""The evaluator: images in, numbers that say what they are out. Usable alone: it knows nothing of how images were drawn."""

from importlib import import_module

import fiducial  # noqa: F401 (which finds the packages of a checkout)

TYPE_CHECKING = False  # typing's, which takes longer to import than all that commands do before Ctrl-C is theirs
if TYPE_CHECKING:
    from fiducial.evaluation.online import Evaluator
    from fiducial.evaluation.settings import Settings

__all__ = ["Evaluator", "Settings"]
WHERE = {"Evaluator": "online", "Settings": "settings"}


def __getattr__(name: str) -> object:
    """`Evaluator` and `Settings`, imported when they are asked for: commands show their help without torch."""
    if name in WHERE:
        return getattr(import_module(f"fiducial.evaluation.{WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
