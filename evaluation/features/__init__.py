"""EXTRACTORS: every network that makes features of images, a row each. A new one is a file beside this one and a row here; any
model of timm's is one too, as timm:NAME.

The rows need no torch, so that commands can list them, and so that a mistake is told before weights are fetched; an extractor's
file is imported when it is loaded.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fiducial import UserError
from fiducial.evaluation.features.perceptual import PERCEPTUAL
from fiducial.evaluation.features.weights import Weights

HUB = "https://huggingface.co"
TIMM = "timm:"  # before the name of a model of timm's
MODULE = "module:"  # and of a module of one's own
SPATIAL_CHANNELS = 7  # of Mixed_6d's first branch; ADM's sFID takes as many so that there are about 2,000 features


@dataclass(frozen=True)
class Timm:
    """A model of timm's as an extractor: `model` is its name there, with the tag of its weights.

    Images are resized to `size` pixels a side, the model's own size if None, of another than its own with position embeddings
    resampled and patches filled up, by timm. `pooling` is "head", by which the model itself pools for its classifier, or "mean"
    over the places of its last map. With `autocast` it runs in bfloat16 where torch.autocast allows.
    """

    model: str
    size: int | None = None
    pooling: str = "head"
    autocast: bool = False


@dataclass(frozen=True)
class ExtractorSpec:
    """An extractor before it is loaded.

    `dimension` is that of its features, `spatial_dimension` that of spatial ones, 0 where it has none; `features` and `logits`
    are what definitions of metrics call its outputs. `weights` are published ones, None where they are embedded; `build`, as
    "file.function" of this package, takes this row, a path of weights (or None), a device and a dtype's name, and gives an
    `Extractor`. `suffix` belongs in the name of every metric made with it, `distance` is what a Fréchet distance over it is
    called. `caveats` says, by protocol, in what the network differs from that protocol's own; `comparable` is whether others
    publish numbers over it, `resized_as` whose resize it has. `packages` are those that its features depend on beside torch,
    `dtypes` what it runs in. `timm` is the model that it is, where it is one of timm's.
    """

    name: str
    dimension: int
    build: str
    features: str
    logits: str = "no logits"
    spatial_dimension: int = 0
    has_logits: bool = True
    weights: Weights | None = None
    suffix: str = ""
    distance: str = "FID"
    caveats: Mapping[str, str] = field(default_factory=dict)
    comparable: bool = True
    resized_as: str = "ADM"
    packages: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    timm: Timm | None = None


INCEPTION = Weights(
    "inception",
    "Inception",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "the TF-ported ones of torch-fidelity",
    "6726825d",
    "; FID-digits alone needs none",
    also_called=("pt_inception-2015-12-05-6726825d.pth",),  # by pytorch-fid: the same file, as its hash in the name says
)
PORT = "the network is torch-fidelity's port of the TensorFlow graph"
CLEAN = " of images resized by clean-fid's bicubic rule"
HALF_PIXEL = " of images resized by torch's bilinear rule without antialias"


def _of_fdr(name: str, title: str, dimension: int, model: str, size: int, pooling: str = "head") -> ExtractorSpec:
    """One of the networks of FDr6 beside Inception (arXiv 2604.28190), as FD-loss's `repr_models.py` runs it."""
    pooled = {"head": "the pooled token", "mean": "the mean over the last map"}[pooling]
    return ExtractorSpec(
        name,
        dimension,
        "timm_models.build",
        features=f"{pooled} of {title} ({dimension:,}), images resized to {size}, in bfloat16 by autocast",
        has_logits=False,
        weights=Weights(
            name,
            title,
            f"{HUB}/timm/{model}/resolve/main/model.safetensors",
            f"timm's {model}",
            saved_as=f"timm-{model}.safetensors",
        ),
        suffix=f"-{title}",
        distance="FD",
        resized_as="FD-loss",
        packages=("timm",),
        timm=Timm(model, size, pooling, autocast=True),
    )


EXTRACTORS = {
    spec.name: spec
    for spec in (
        ExtractorSpec(
            "inception",
            2048,
            "inception.build",
            features="pool3 (2,048)",
            logits="1,008 logits without bias",
            spatial_dimension=17 * 17 * SPATIAL_CHANNELS,
            weights=INCEPTION,
            caveats={"adm": PORT, "clean": PORT},
            packages=("torch-fidelity",),
            dtypes=("float32", "bfloat16"),
        ),
        ExtractorSpec(
            "inception-clean",
            2048,
            "inception.build",
            features=f"pool3 (2,048){CLEAN}",
            logits=f"1,008 logits without bias{CLEAN}",
            weights=INCEPTION,
            suffix="-clean",
            resized_as="clean-fid",
            caveats={"adm": PORT, "clean": PORT},
            packages=("torch-fidelity",),
            dtypes=("float32", "bfloat16"),
        ),
        ExtractorSpec(
            "inception-pytorch-fid",
            2048,
            "inception.build",
            features=f"pool3 (2,048){HALF_PIXEL}",
            logits=f"1,008 logits without bias{HALF_PIXEL}",
            weights=INCEPTION,
            suffix="-pytorch",
            resized_as="pytorch-fid",
            caveats={"pytorch-fid": "the network is torch-fidelity's port, with pytorch-fid's resize and scaling"},
            packages=("torch-fidelity",),
            dtypes=("float32", "bfloat16"),
        ),
        ExtractorSpec(
            "dinov2",
            1024,
            "dinov2.build",
            features="the class token of DINOv2's ViT-L/14 (1,024), images resized to 224",
            has_logits=False,
            weights=Weights(
                "dinov2",
                "DINOv2",
                "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
                "DINOv2's ViT-L/14, the official file or timm's",
            ),
            suffix="-DINOv2",
            distance="FD",
            caveats={"dino": "the network is timm's implementation of DINOv2"},
            packages=("timm",),
        ),
        _of_fdr("convnextv2", "ConvNeXt", 1024, "convnextv2_base.fcmae_ft_in22k_in1k", 224, "mean"),
        _of_fdr("dinov2-256", "DINOv2-256", 1024, "vit_large_patch14_dinov2.lvd142m", 256),
        _of_fdr("mae", "MAE", 1024, "vit_large_patch16_224.mae", 224),
        _of_fdr("siglip2", "SigLIP2", 1152, "vit_so400m_patch16_siglip_256.v2_webli", 224),
        _of_fdr("clip", "CLIP", 1024, "vit_large_patch14_clip_224.openai", 256),
        ExtractorSpec(
            "digits",
            64,
            "digits.build",
            features="the 64 features of the embedded digit classifier",
            logits="the 10 logits of the embedded digit classifier",
            suffix="-digits",
            comparable=False,
        ),
    )
}
DEFAULT = "inception"
WEIGHTS = {spec.weights.name: spec.weights for spec in EXTRACTORS.values() if spec.weights}
WEIGHTS |= {weights.name: weights for spec in PERCEPTUAL.values() for weights in spec.weights}
# Names that stand for several extractors: by FD-loss, the FD of ImageNet's validation images to its training set over each, which
# FDr divides by (arXiv 2604.28190).
FDR6 = {"inception": 1.68, "convnextv2": 56.87, "dinov2-256": 14.19, "mae": 0.04, "siglip2": 0.60, "clip": 5.60}
SEVERAL = {"fdr6": tuple(FDR6)}
OWN: dict[str, ExtractorSpec] = {}  # of modules that were handed to an `Evaluator` in this process


def spec_of(name: str) -> ExtractorSpec:
    """The extractor of that name; of timm:NAME, by what timm knows of that model.

    Raises:
        UserError: if there is none.
    """
    if found := EXTRACTORS.get(name) or OWN.get(name):
        return found
    if name.startswith(TIMM):
        from fiducial.evaluation.features.timm_models import spec_of_model

        return spec_of_model(name)
    raise UserError(f"there is no extractor {name!r}; choose from {', '.join(EXTRACTORS)}, or timm:NAME, any model of timm's")


def parse_extractors(text: str | None) -> tuple[str, ...]:
    """The extractors that are named in a text, with commas between; `SEVERAL` are names of several. None of None.

    Raises:
        UserError: if one is unknown, or named twice; of timm's models only the form of the name is looked at.
    """
    names = [name.strip() for name in (text or "").split(",")] if text is not None else []
    names = [one for name in names for one in SEVERAL.get(name, (name,))]
    for name in names:
        if not name.startswith(TIMM) or name == TIMM:
            spec_of(name)
        if names.count(name) > 1:
            raise UserError(f"--extractor {text}: {name} is named twice")
    return tuple(names)


def file_of(name: str) -> str:
    """The name of an extractor's reference in a folder of several."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}.npz"


def differs_from_adm(name: str | None) -> bool:
    """Whether numbers are published over this extractor's features, and those are not the ones of ADM's statistics."""
    return name is not None and name != DEFAULT and spec_of(name).comparable


def parse_weights(texts: Sequence[str] | None, **others: Path | None) -> dict[str, Path]:
    """Files by the name of whose weights they are.

    Args:
        texts: NAME=FILE each, or several with commas between; None for none.
        others: files that were given by options of their own.

    Raises:
        UserError: if one is not that, or given twice.
    """
    found = {}
    for text in [part for given in texts or () for part in re.split(r",(?=(?:[a-z0-9-]+|timm:[\w./-]+)=)", given)]:
        name, _, path = text.partition("=")
        if not (name in WEIGHTS or name.startswith(TIMM)) or not path:
            raise UserError(f"--weights {text}: give NAME=FILE, where NAME is one of {', '.join(WEIGHTS)}, or timm:NAME")
        if name in found:
            raise UserError(f"--weights {text}: those of {name} are given twice")
        found[name] = Path(path)
    for name, path in others.items():
        if path is not None and name in found:
            raise UserError(f"--weights {name}={found[name]} and --{name}-weights {path}: give only one of them")
    return found | {name: path for name, path in others.items() if path is not None}
