"""Autoguidance (arXiv 2406.02507): a second, worse network, whose prediction for the same label is guided away from."""

from dataclasses import replace

import torch

from fiducial import UserError
from fiducial.models.checkpoints import checkpoint, label_table, shapes
from fiducial.models.latent import LatentShape
from fiducial.models.networks.dit import DiT
from fiducial.models.networks.table import NetworkSpec, spec_of
from fiducial.sampling.options.config import SamplingConfig


def model_of(config: SamplingConfig) -> str:
    """The model of `--guidance-ckpt`, as it was given or else as the file says; where a file does not say its family, that of
    `--model` is taken.

    Raises:
        UserError: if the file is none of a network, or of one that does not predict what the other does.
    """
    path = config.guidance_ckpt
    found = checkpoint.read(path)
    likely = config.guidance_model or (None if found.says_family else config.model)
    checkpoint.require_family(found, path, likely, "--guidance-model")
    said = shapes.describe(found.state, path, checkpoint.family_in(found, likely))
    if config.guidance_model is None:
        shapes.require_known(said, path)
    model = config.guidance_model or said["model"]
    weak, strong = spec_of(model), spec_of(config.model)
    if (weak.predicts, weak.path, weak.needs_variance) != (strong.predicts, strong.path, strong.needs_variance):
        raise UserError(
            f"--guidance-ckpt {path}: a {weak.name} predicts {weak.predicts} on the path {weak.path}, and {config.model} "
            f"{strong.predicts} on {strong.path}; give a network that predicts the same"
        )
    for name, usual in (("path", strong.path), ("prediction", strong.predicts)):
        drawn = getattr(config, name) or usual
        if (said := found.trained.get(name, drawn)) != drawn:
            raise UserError(
                f"--guidance-ckpt {path}: says of its training {said}, and {config.model} is drawn with {name} {drawn}; give a "
                "network that predicts the same"
            )
    return model


def recorded(config: SamplingConfig, latent: LatentShape) -> dict[str, str]:
    """The entries of a run's identity that tell of it, nothing where there is none.

    Raises:
        UserError: if it is not for such latents and classes.
    """
    path = config.guidance_ckpt
    if path is None:
        return {}
    found, model = checkpoint.read(path), model_of(config)
    has_null = label_table.has_null_label(found, path, config.num_classes, unguided=True)
    try:
        shapes.check(found.state, path, model, config.num_classes, latent, has_null=has_null)
    except UserError as error:
        raise UserError(f"--guidance-ckpt: {error}") from error
    return {"guidance_model": model, "guidance_checkpoint_sha256": checkpoint.sha256(path)}


def load(config: SamplingConfig, device: torch.device) -> DiT | None:
    """The network, from its file, in float32; None where there is none. `config.guidance_model` is known."""
    if config.guidance_ckpt is None:
        return None
    return checkpoint.read(config.guidance_ckpt).load(config.guidance_model, config.num_classes, device, config.network)


def spec_beside(config: SamplingConfig, strong: NetworkSpec) -> NetworkSpec:
    """The row of its family, predicting on the same path what the other network does."""
    return replace(spec_of(config.guidance_model), path=strong.path, predicts=strong.predicts)
