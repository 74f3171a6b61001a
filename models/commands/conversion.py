"""A checkpoint in another form, bit for bit: `python -m models convert`."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from fiducial import CLASSES_BESIDE, UserError, in_the_making, read_bytes, remove_leftovers, say, write_whole

if TYPE_CHECKING:
    import torch

ENDINGS = {"official": ".pt", "safetensors": ".safetensors", "diffusers": ""}


def add_parser(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "convert",
        help="write a checkpoint in another form",
        description="Writes the weights of a checkpoint, of a training checkpoint its EMA, in another form, bit for bit and in "
        "the same dtype. Of what was saved beside the weights only class_to_idx is kept, and only in safetensors; a mapping in "
        "CKPT.classes.json is copied.",
        allow_abbrev=False,
    )
    command.add_argument("source", type=Path, help="whatever sample_ddp.py --ckpt takes")
    command.add_argument("out", type=Path, help="a file that ends in .pt (official) or .safetensors, or a folder (diffusers)")
    command.add_argument("--weights-key", metavar="KEY", help="which weights of a source that holds several (default: its EMA)")
    command.add_argument(
        "--to",
        required=True,
        choices=ENDINGS,
        help="official: a state dict by torch.save; safetensors: the same names; diffusers: a folder that "
        "DiTTransformer2DModel.from_pretrained loads, which then computes by its own arithmetic (see sample_ddp.py --network)",
    )


def run(args: argparse.Namespace) -> int:
    kind, count, left = convert(args.source, args.out, args.to, args.weights_key)
    if (beside := args.source.with_name(args.source.name + CLASSES_BESIDE)).is_file():
        write_whole(args.out.with_name(args.out.name + CLASSES_BESIDE), lambda path: path.write_bytes(read_bytes(beside)))
    which = "" if kind == "plain" else f" its {kind},"
    say(f"{args.out}: {args.source} as {args.to},{which} {count} tensors")
    if left:
        say(f"what its classes are called stays behind, as that form has no place for it; give --class-names with {args.out}")
    return 0


def convert(source: Path, out: Path, to: str, weights_key: str | None = None) -> tuple[str, int, bool]:
    """Write the weights of `source` to `out`, whole or not at all.

    Args:
        weights_key: which weights, if it holds several; None: the EMA.

    Returns:
        Which weights they are, the number of official tensors, and whether a class mapping was left behind.

    Raises:
        UserError: if there is something at `out`, or the source is no DiT of ours, or cannot be put in that form.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists; remove it, or choose another name")
    if ENDINGS[to] and out.suffix != ENDINGS[to]:
        raise UserError(f"{out}: --to {to} writes a file whose name ends in {ENDINGS[to]}")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")

    from safetensors import SafetensorError

    from fiducial.models.checkpoints import checkpoint, diffusers_form, label_table, shapes
    from fiducial.models.networks.dit import DiT_models
    from fiducial.models.networks.table import told_by

    whole = checkpoint.read(source, weights_key)
    if told_by(whole.state):
        raise UserError(f"{source} is of {whole.family}'s kind; only a DiT's weights can be converted")
    checkpoint.require_family(whole, source, "DiT-")
    state, kind = whole.state, whole.kind
    found = shapes.describe(state, source)
    if found["model"] not in DiT_models:
        raise UserError(f"{source} is a {found['model']}; only the sizes {', '.join(DiT_models)} can be converted")
    found["learn_sigma"] = shapes.learns_sigma(state)
    shapes.check(state, source, **found)
    if diffusers_form.has_own_embedders(state) and to != "diffusers":
        raise UserError(f"{source}: its blocks have embedders of their own, for which only diffusers' form has a place")
    if to == "diffusers" and not label_table.classes_of(whole)[1]:
        raise UserError(f"{source}: it has no null label, for which diffusers' form always has a place")
    mapping = whole.class_to_idx
    try:
        if to == "diffusers":
            diffusers_form.require_formula(state, source)
            write_folder(diffusers_form.to_diffusers(state), diffusers_form.config_of(**shapes.named(found)), out)
        else:
            write_whole(out, lambda beside: write_file(state, beside, to, mapping))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"class_to_idx in {source} is no mapping of names to numbers ({error})") from error
    except (OSError, RuntimeError, SafetensorError) as error:  # so the two writers say that the disk is full
        raise UserError(f"{out} cannot be written ({' '.join(str(error).split())[:200]})") from error
    return kind, len(state), mapping is not None and to != "safetensors"


def write_file(state: dict, path: Path, form: str, mapping: object = None) -> None:
    """One file, in which each tensor takes only the room that it needs, and beside them in safetensors a class mapping."""
    import torch
    from safetensors.torch import save_file

    from fiducial.models.checkpoints.checkpoint import CLASS_TO_IDX

    own = {name: value if is_alone(value) else value.clone().contiguous() for name, value in state.items()}
    if form == "official":
        torch.save(own, path)
    else:
        text = mapping if isinstance(mapping, str) else json.dumps(mapping)
        path.touch()
        mode = path.stat().st_mode  # which the umask has made; safetensors lets nobody else read what it writes
        save_file(own, path, metadata={"format": "pt"} | ({CLASS_TO_IDX: text} if mapping is not None else {}))
        path.chmod(mode)


def is_alone(value: "torch.Tensor") -> bool:
    """Whether a tensor is all of its memory, in order."""
    return value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes


def write_folder(state: dict, config: dict, folder: Path) -> None:
    """A folder as diffusers writes it, which appears when all is in it."""
    from fiducial.models.checkpoints.checkpoint import CONFIG_FILE, WEIGHTS_FILES

    remove_leftovers(folder.parent)
    beside = in_the_making(folder)
    try:
        beside.mkdir()
        write_whole(beside / WEIGHTS_FILES[0], lambda path: write_file(state, path, "safetensors"))
        write_whole(beside / CONFIG_FILE, lambda path: path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n"))
        os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
