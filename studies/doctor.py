"""Problems that a run and its evaluation will meet on this machine: `fiducial doctor`."""

from collections.abc import Iterator

from fiducial import Group, UserError
from fiducial.sampling.__main__ import main as look_at_machine


def main() -> int:
    return look_at_machine(of_evaluation)


def of_evaluation(group: Group) -> Iterator[tuple[str, str]]:
    """On every rank: what was found of the digits' extractor, and the problem, if it is one."""
    from fiducial.evaluation.features.load import load_extractor

    try:
        load_extractor("digits", None, group)  # on a GPU it is compared with the CPU
    except UserError as error:
        yield "", str(error)
    else:
        yield f"features of images by this {group.device.type.upper()} are as they should be", ""
