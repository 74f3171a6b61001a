"""Any model of timm's as an extractor, prepared for and pooled as timm's own configuration of it says.

Of FDr6's networks size and pooling are those of FD-loss (arXiv 2604.28190), which has all but Inception run in bfloat16.
"""

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiducial import UserError, file_sha256
from fiducial.evaluation.features import HUB, TIMM, ExtractorSpec, Timm, Weights
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.features.states import read_state, require_finite

CPU_CHUNK = 8  # images at once
RESIZES = ("bilinear", "bicubic")  # that torch has with antialias; another that timm names is taken as the last


@lru_cache(maxsize=16)
def spec_of_model(name: str) -> ExtractorSpec:
    """The row of timm:NAME: its dimension, and where its weights are published.

    Raises:
        UserError: if timm is not installed, has no such model, or it takes no RGB images.
    """
    model = name.removeprefix(TIMM)
    how = Timm(full_name(model))
    with torch.device("meta"):
        network = bare(how)
        config = preparation(network, how)
        dimension = pooled(network.eval(), torch.empty(1, 3, *config["input"]), how).shape[1]
    source = network.pretrained_cfg
    url = f"{HUB}/{source['hf_hub_id']}/resolve/main/model.safetensors" if source.get("hf_hub_id") else source.get("url") or ""
    return ExtractorSpec(
        name,
        dimension,
        "timm_models.build",
        features=f"the pooled features of timm's {how.model} ({dimension:,}), images resized to {config['input'][0]}",
        has_logits=False,
        weights=Weights(name, f"timm's {how.model}", url, "timm's file", saved_as=f"timm-{how.model}.safetensors"),
        suffix=f"-{how.model}",
        distance="FD",
        resized_as="timm",
        packages=("timm",),
        timm=how,
    )


def full_name(model: str) -> str:
    """A model's name with the tag of its weights, which are timm's default ones where none is named.

    Raises:
        UserError: if timm has no such model.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(f"the extractor timm:{model} needs timm; pip install timm") from error
    if not timm.is_model(model.split(".")[0]):
        raise UserError(f"--extractor timm:{model}: timm {timm.__version__} has no such model; timm.list_models() names all")
    try:
        tag = timm.models.get_pretrained_cfg(model).tag
    except (AttributeError, RuntimeError) as error:
        raise UserError(f"--extractor timm:{model}: timm {timm.__version__} has no weights of that name") from error
    return f"{model.split('.')[0]}.{tag}" if tag else model


def bare(how: Timm) -> nn.Module:
    """The model without weights or a classifier; of another size than its own, it resamples positions and fills up patches."""
    import timm

    given = {"dynamic_img_size": True, "dynamic_img_pad": True} if how.size else {}
    try:
        return timm.create_model(how.model, pretrained=False, num_classes=0, **given)
    except TypeError:  # a network of convolutions, which takes any size
        return timm.create_model(how.model, pretrained=False, num_classes=0)


def preparation(network: nn.Module, how: Timm) -> dict:
    """The model's name, input's height and width, mean, std, interpolation, pooling and autocast, as results record them.

    Raises:
        UserError: if it takes no RGB images.
    """
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(network)
    channels, *size = config["input_size"]
    if channels != 3:
        raise UserError(f"--extractor timm:{how.model}: takes {channels} channels, and images have 3")
    return {
        "model": how.model,
        "input": [how.size, how.size] if how.size else size,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config["interpolation"] if config["interpolation"] in RESIZES else RESIZES[-1],
        "pooling": how.pooling,
        "autocast": "bfloat16" if how.autocast else None,
    }


def pooled(network: nn.Module, x: Tensor, how: Timm) -> Tensor:
    """Prepared images (N, 3, H, W) -> features (N, D)."""
    features = network.forward_features(x)
    return features.mean((2, 3)) if how.pooling == "mean" else network.forward_head(features, pre_logits=True).flatten(1)


def prepared(images: Tensor, config: dict) -> Tensor:
    """(N, 3, H, W) of levels 0 to 255 -> float32 of the model's size, resized with antialias, neither rounded nor clipped."""
    x, size = images.float() / 255, tuple(config["input"])
    if x.shape[-2:] != size:
        x = F.interpolate(x, size=size, mode=config["interpolation"], antialias=True)
    mean, std = (torch.tensor(config[name], device=x.device).view(3, 1, 1) for name in ("mean", "std"))
    return (x - mean) / std


def build(spec: ExtractorSpec, path: Path, device: torch.device, _dtype: str) -> Extractor:
    """The model with the weights in `path`.

    Raises:
        UserError: if they are missing, damaged, or not this model's.
    """
    how, network = spec.timm, bare(spec.timm).eval()
    state, own = read_state(spec.name, path), network.state_dict()
    for classifier in _classifiers(network):
        state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{classifier}.")}
    if {key: tensor.shape for key, tensor in state.items()} != {key: tensor.shape for key, tensor in own.items()}:
        odd = sorted(set(state) ^ set(own)) or [key for key in own if state[key].shape != own[key].shape]
        raise UserError(f"--weights {spec.name}={path}: not the weights of timm's {how.model} (names or shapes differ: {odd[0]})")
    require_finite(spec.name, path, state)
    network.load_state_dict(state)
    network.requires_grad_(False).to(device)
    config = preparation(network, how)

    def apply(images: Tensor) -> tuple[Tensor, None]:
        with torch.autocast(device.type, torch.bfloat16, enabled=how.autocast):
            return pooled(network, prepared(images, config), how).float(), None

    return Extractor.of(spec, file_sha256(path), device, apply, cpu_chunk=CPU_CHUNK, preparation=config)


def _classifiers(network: nn.Module) -> tuple[str, ...]:
    """The names of the layers that a file has and a model without a classifier lacks."""
    found = network.pretrained_cfg.get("classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)
