"""The evaluator: images in, numbers that say what they are out. Usable alone: it knows nothing of how images were drawn."""

import fiducial  # noqa: F401 (which finds the packages of a checkout)

TYPE_CHECKING = False  # typing's, which takes longer to import than all that commands do before Ctrl-C is theirs
if TYPE_CHECKING:
    from fiducial.evaluation.online import Evaluator

__all__ = ["Evaluator"]


def __getattr__(name: str) -> object:
    """`Evaluator`, imported when it is asked for: commands show their help without torch."""
    if name == "Evaluator":
        from fiducial.evaluation.online import Evaluator

        return Evaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
