"""The network that some weights are of, by their shapes alone, and whether it is the one that is meant."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from fiducial import UserError
from fiducial.models.checkpoints.diffusers_form import State, has_own_embedders, hold_against
from fiducial.models.checkpoints.hub import CONFIG_FILE
from fiducial.models.latent import LatentShape
from fiducial.models.networks.dit import DIT_SIZES, DiT
from fiducial.models.networks.parts import Transformer
from fiducial.models.networks.table import NETWORKS, USUAL, NetworkSpec, alike, family_of, models, spec_of, told_by


def check(
    state: State,
    path: Path,
    model: str,
    num_classes: int,
    latent: LatentShape,
    learn_sigma: bool = True,
    has_null: bool = True,
    factor: int | None = None,
) -> None:
    """Compare the weights with the network they are meant for; only shapes are read.

    Args:
        has_null: the label table has a row for the null label.
        factor: image pixels a latent pixel, for advice on `--image-size`.

    Raises:
        UserError: naming the file, what was expected and what was found.
    """
    check_shape(state, path, {"model": model, "num_classes": num_classes, "latent": latent}, has_null, factor)
    if not spec_of(model).needs_variance:
        learn_sigma = learns_sigma(state)
    if learn_sigma and not learns_sigma(state):
        raise UserError(
            f"{path} was trained without a variance (learn_sigma False), which the samplers take from a {family_of(model)}"
            f"{if_another(model)}"
        )
    network = without_weights(state, model, num_classes, latent, learn_sigma)
    hold_against(state, network.state_dict(), path, model)


def without_weights(
    state: State, model: str, num_classes: int, latent: LatentShape, learn_sigma: bool, network: str = "official"
) -> DiT | Transformer:
    """The network that `state` is for, on the meta device; it has a null label if the table has a row more than classes."""
    has_null = len(state["y_embedder.embedding_table.weight"]) != num_classes
    shape = {"input_size": latent.size, "in_channels": latent.channels, "num_classes": num_classes}
    with torch.device("meta"):
        if layout := spec_of(model).layout:
            return spec_of(model).build[model](**shape, **layout.shape(state).options, has_null=has_null)
        return spec_of(model).build[model](
            **shape, learn_sigma=learn_sigma, network=network, own_embedders=has_own_embedders(state), has_null=has_null
        )


def if_another(model: str) -> str:
    """A hint where weights may be of another family than `model`, as a clause; the weights of both look the same."""
    others = " or ".join(f"a {family_of(name)}, give --model {name}" for name in alike(model))
    return f"; if it is {others}" if others else ""


def check_shape(
    state: State, path: Path, expected: Mapping[str, object], has_null: bool = True, factor: int | None = None
) -> None:
    """Compare what `describe` says of the weights with some of it; `has_null` and `factor` as in `check`.

    Raises:
        UserError: naming the file, what was expected, what was found, and the options that make it fit.
    """
    described = describe(state, path, family_of(expected.get("model")))
    if "latent" in expected and takes_any_size(described["model"]):
        described["latent"] = replace(described["latent"], size=expected["latent"].size)
    found, expected = named(described), named(expected)
    found["num_classes"] += not has_null
    if wrong := [name for name in expected if expected[name] != found[name]]:
        said = ", ".join(f"{name} {expected[name]}" for name in wrong)
        seen = ", ".join(f"{name} {found[name]}" for name in wrong)
        remedy = _remedy({name: found[name] for name in wrong}, factor)
        no_null = _without_null_label(found["num_classes"] + 1, expected.get("num_classes"))
        raise UserError(f"{path}: expected {said}; found {seen}{remedy}{no_null}")


def takes_any_size(model: str) -> bool:
    """Whether a model takes latents of any size, and its weights do not tell of which it was trained on."""
    layout = NETWORKS[family_of(model)].layout
    return layout is not None and layout.any_size


def named(shape: Mapping[str, object]) -> dict[str, str | int]:
    """A description by `describe`, or some of it, under the names that people know."""
    latent = shape.get("latent")
    of_latent = {"input_size": latent.size, "in_channels": latent.channels} if latent else {}
    return {name: value for name, value in shape.items() if name != "latent"} | of_latent


def _remedy(found: dict[str, str | int], factor: int | None) -> str:
    """The options to which weights would fit, as a clause, and for which there is a network."""
    options = [f"--model {found['model']}"] if found.get("model") in models() else []
    options += [f"--image-size {found['input_size'] * factor}"] if factor and "input_size" in found else []
    options += [f"--num-classes {found['num_classes']}"] if found.get("num_classes") else []
    options += [f"the --vae that it was trained with, of {found['in_channels']} channels"] if "in_channels" in found else []
    return f"; give {' '.join(options)}" if options else ""


def require_known(found: Mapping[str, object], path: Path) -> None:
    """Raise UserError if the network that `describe` found in `path` has no size of ours."""
    if found["model"] not in (known := NETWORKS[family_of(found["model"])].build):
        raise UserError(f"{path} is a {found['model']}, and there are only {', '.join(known)}")


def require_network(state: State, path: Path, network: str) -> None:
    """Raise UserError if the weights can only be those of a network that was trained in diffusers, and `network` is another."""
    if has_own_embedders(state) and network != "diffusers":
        raise UserError(
            f"{path}: its blocks have embedders of their own, as only a network that was trained in diffusers does; give "
            "--network diffusers"
        )


def require_inner(state: State, path: Path, said: str) -> None:
    """Raise UserError if the network whose `describe` succeeded has no inner head; `said` begins the sentence."""
    told = told_by(state)
    if told is None or told.layout.shape(state).options.get("inner") is None:
        raise UserError(f"{said}: {path} was trained without an inner head; leave it out")


def _without_null_label(rows: int, num_classes: int | None) -> str:
    """A hint where a label table has exactly one row a class."""
    if rows != num_classes:
        return ""
    return (
        f", unless its {rows} rows are {rows} classes: then it was trained without a null label (class_dropout_prob 0), and is "
        "drawn with --cfg-scale 1.0 alone"
    )


def learns_sigma(state: State) -> bool:
    """Whether the network whose `describe` succeeded also puts out the variance."""
    if told := told_by(state):
        return bool(told.layout.shape(state).options.get("learn_sigma"))
    patches = state["x_embedder.proj.weight"][0].numel()
    bias = state.get("final_layer.linear.bias")
    return bias is None or bias.numel() != patches


def describe(state: State, path: Path, family: str = USUAL) -> dict[str, object]:
    """The network that some weights are of: `model`, `num_classes`, `latent`, a `LatentShape`.

    Args:
        family: of `NETWORKS`, where weights alone do not tell it.

    Raises:
        UserError: if they are not of a DiT, or of what their names tell.
    """
    spec = told_by(state) or NETWORKS.get(family, NETWORKS[USUAL])
    if spec.layout:
        return _described(state, path, spec)
    for key, dimensions in (("x_embedder.proj.weight", 4), ("y_embedder.embedding_table.weight", 2), ("pos_embed", 3)):
        if key not in state or state[key].dim() != dimensions:
            if any(name.startswith("transformer_blocks.") for name in state):
                raise UserError(f"{path} has diffusers' names; give the folder that it is in, with its {CONFIG_FILE}")
            found = f"{tuple(state[key].shape)}" if key in state else f"none among its {len(state)} keys"
            raise UserError(f"{path} is not a DiT checkpoint: expected a tensor {key} of {dimensions} dimensions, found {found}")
        if 0 in state[key].shape:
            raise UserError(f"{path} is not a DiT checkpoint: its {key} is empty, {tuple(state[key].shape)}")
    hidden, channels, patch, _ = state["x_embedder.proj.weight"].shape
    for key in ("y_embedder.embedding_table.weight", "pos_embed"):
        if state[key].shape[-1] != hidden:
            expected = (*state[key].shape[:-1], hidden)
            raise UserError(f"{path}: {key} of a network {hidden} wide is {expected}; found {tuple(state[key].shape)}")
    rows, _ = state["y_embedder.embedding_table.weight"].shape
    _, tokens, _ = state["pos_embed"].shape
    depth = len({match[1] for key in state if (match := re.match(r"blocks\.(\d+)\.", key))})
    sizes = (size for size, (width, layers, _) in DIT_SIZES.items() if (width, layers) == (hidden, depth))
    size = next(sizes, f"({hidden} wide, {depth} deep)")
    return {
        "model": f"{family}-{size}/{patch}",
        "num_classes": rows - 1,
        "latent": LatentShape(channels, math.isqrt(tokens) * patch),
    }


def _described(state: State, path: Path, spec: NetworkSpec) -> dict[str, object]:
    """`describe` of a family whose files have names of their own."""
    try:
        found = spec.layout.shape(state)
    except KeyError as error:
        lacks = f"it has no {error.args[0]} among its {len(state)} keys"
        raise UserError(f"{path} is not a {spec.name} checkpoint: {lacks}") from error
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is not a {spec.name} checkpoint: its tensors are not of that network's dimensions") from error
    latent = LatentShape(found.channels, found.side)
    return {"model": f"{spec.name}-{found.size}/{found.patch}", "num_classes": found.rows - 1, "latent": latent}
