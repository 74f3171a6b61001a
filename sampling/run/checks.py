"""Checks of the folder that a run is to be drawn into, before anything is written there."""

import glob
import os
from contextlib import suppress
from pathlib import Path

from fiducial import UserError, nearest, say, unwritable
from fiducial.classes import GUESSED, ClassNames, difference
from fiducial.sampling.identity import FINGERPRINT_LETTERS, Identity
from fiducial.sampling.plan import Plan, least_block, used
from fiducial.sampling.source.numerics import RESOLVED
from fiducial.sampling.source.protocol import ResolvedRun
from fiducial.sampling.store import manifest as manifests
from fiducial.sampling.store.folder import MANIFEST, ONLINE
from fiducial.sampling.store.manifest import Manifest
from fiducial.sampling.store.npz import npz_path, part_path
from fiducial.sampling.store.places import check_places
from fiducial.sampling.store.png import png_path

SHOWN = 100  # characters of a value in a message
WORTH_SAYING = 0.05  # of the ranks' time
SHORTER = "choose a shorter --run-name or --sample-dir"


def check_names(folder: Path, manifest: Manifest | None, names: ClassNames | None) -> None:
    """Raise UserError if a run was begun with other class names. Runs of before they were recorded take any, as do
    those whose names were only guessed."""
    there = manifest and manifest.class_names
    if there and names and there.sha256 != names.sha256 and there.source != GUESSED:
        raise UserError(
            f"{folder} belongs to a different configuration: class_names are from {there.source} there and {names.source} "
            f"here, so {difference(there.names, names.names)}; give them as they are there, or choose another "
            "--run-name or --sample-dir"
        )


def check_kind(folder: Path, own: str) -> None:
    """Raise UserError if a run of the other kind is in the folder, whose files would stand among those of a run of this one.

    Args:
        own: the file that says what a run of this kind is.
    """
    kinds = {MANIFEST: "that keeps its images", ONLINE: "of --evaluate-online, which keeps none"}
    for file, kind in kinds.items():
        if file != own and os.path.lexists(folder / file):
            raise UserError(f"{folder} belongs to a run {kind}, as its {file} shows; choose another --run-name")


def check_folder(folder: Path, manifest: Manifest | None, run: ResolvedRun) -> None:
    """Raise UserError if the folder belongs to another configuration, or cannot be written."""
    npz, config = npz_path(folder), run.config
    check_places(folder)
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"--sample-dir {config.sample_dir}: {folder} cannot be written")
    there = nearest(folder)
    if reason := unwritable(there):
        why = f"because {there} cannot be written ({reason})"
        raise UserError(f"--sample-dir {config.sample_dir}: cannot create {folder}, {why}")
    if manifest is None:
        if there := [path for path in (npz, part_path(folder)) if path.exists()]:
            raise UserError(f"{there[0]} exists, but {folder} has no {MANIFEST}; move it away, or choose another --run-name")
        if png_path(folder, 0).exists() or (folder.is_dir() and any(folder.glob("*.png"))):
            raise UserError(f"{folder} holds images but no {MANIFEST}, so what they are is unknown; choose another folder")
    elif manifest.identity != run.identity:
        raise other_configuration(folder, manifest.identity, run.identity, (manifest.paths or {}).get("weights"))
    elif manifest.num_fid_samples > config.num_fid_samples:
        raise UserError(
            f"--num-fid-samples {config.num_fid_samples}: {folder} is a run of {manifest.num_fid_samples}, which can grow "
            "but not shrink; choose another --run-name or --sample-dir"
        )


def check_records(folder: Path, manifest: Manifest) -> None:
    """Raise UserError if the records in the folder are of another run than its manifest."""
    if reason := manifests.mixed_up(folder, manifest):
        raise UserError(f"{reason}; put back the files of one run, or choose another --run-name or --sample-dir")


def other_configuration(folder: Path, there: Identity, here: Identity, weights: str | None = None) -> UserError:
    """The error for a `folder` of the identity `there`, drawn from the weights of that name, and this run of another."""
    names = here.differing(there)
    said = ", ".join(
        f"{name} is {str(there.values.get(name))[:SHOWN]} there and {str(here.values.get(name))[:SHOWN]} here" for name in names
    )
    remedy = "give these options as they are there, or " if {*RESOLVED, "per_proc_batch_size"}.issuperset(names) else ""
    own = there.values.get("weights_key")
    if "weights_key" in names and (key := own or weights):  # an identity names no usual weights
        said = said.replace(f"weights_key is {own} there", f"weights_key is {key} there").replace(
            f"{key} there and None here", f"{key} there and other weights are taken here"
        )
        remedy = f"give --weights-key {key}{' to go on with it' if len(names) == 1 else ''}, or "
    remedy += "choose another --run-name or --sample-dir"
    return UserError(f"{folder} belongs to a different configuration: {said}; {remedy}")


def tell_of_block_size(plan: Plan, world_size: int) -> None:
    """Say if smaller blocks would leave clearly fewer ranks without work in the end; a run that has begun keeps its size."""
    size = least_block(plan.count, plan.block_size, world_size)
    now, then = (used(plan.count, one, world_size) for one in (plan.block_size, size))
    if then >= now + WORTH_SAYING:
        ranks = f"{world_size} ranks" if world_size > 1 else "the one rank"
        say(
            f"note: blocks of {plan.block_size} keep {ranks} busy with wanted images {100 * now:.3g} % of the time; "
            f"--per-proc-batch-size {size} would {100 * then:.3g} %"
        )


def tell_of_siblings(folder: Path, identity: Identity) -> None:
    """Say if the run was begun with other numerics: on another processor or GPU, `auto` means something else."""
    for sibling in folder.parent.glob(f"{glob.escape(folder.name[:-FINGERPRINT_LETTERS])}*/{MANIFEST}"):
        with suppress(UserError):
            other = manifests.read(sibling.parent).identity
            unlike = set(identity.differing(other))
            differing = [name for name in identity.values if name in unlike]
            if differing and set(RESOLVED).issuperset(differing):
                said = ", ".join(f"{name} {other.values.get(name)} (here {identity.values[name]})" for name in differing)
                say(f"note: {sibling.parent} is the same run with {said}; to continue that one, give its options")
