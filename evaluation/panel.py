"""The networks of FDr6 beside Inception: each with its reference, both checked before weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fiducial import Group, UserError
from fiducial.evaluation.data.references import Reference, find_reference
from fiducial.evaluation.features import FDR6
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.features.load import load_extractor
from fiducial.evaluation.fit import check_reference, choose_extractor
from fiducial.evaluation.settings import Settings


@dataclass(frozen=True)
class Member:
    """One of the networks."""

    reference: Reference
    extractor: Extractor


def find_panel(
    ref: str, main: Reference, extractor: str, settings: Settings, group: Group, image_size: int | None
) -> dict[str, Reference]:
    """The references of the other networks, by extractor.

    Args:
        ref: as `--ref` names them: images, a folder of a file each, or a file of several.
        main: the one of Inception, which is there already.
        extractor: what that was opened for.

    Raises:
        UserError: if one has none, or FDr6 cannot be had with these settings.
    """
    if extractor not in FDR6 or settings.rules.extractor:
        raise UserError(f"--metrics fdr6: its first network is inception, with ADM's resize, and here it is {extractor}")
    if settings.dtype != "float32":
        raise UserError(f"--dtype {settings.dtype}: FDr6's Inception runs in float32; leave it out, or fdr6")
    found = {}
    for name in FDR6:
        if name == extractor:
            continue
        if main.kind == "images":
            found[name] = main
            continue
        try:
            found[name] = find_reference(ref, group, settings.cache_dir, image_size, None, name)
            choose_extractor(found[name], name, settings)
        except UserError as error:
            raise UserError(
                f"--metrics fdr6: --ref {ref} has no statistics of {name} ({error}); give images, the folder that "
                "python -m evaluation ref --extractor fdr6 makes, or fd-loss-imagenet-256"
            ) from error
    return found


def load_panel(
    references: dict[str, Reference], weights: Mapping[str, str | Path] | None, settings: Settings, group: Group
) -> tuple[Member, ...]:
    """The networks with their references.

    Raises:
        UserError: if weights are missing, or not those that a reference was made with.
    """
    members = tuple(
        Member(reference, load_extractor(name, weights, group, settings.dtype, settings.cache_dir))
        for name, reference in references.items()
    )
    for member in members:
        check_reference(member.reference, member.extractor)
    return members
