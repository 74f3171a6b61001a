"""EXTRACTORS: every network that makes features of images, a row each. A new one is a file beside this one and a row here.

The rows need no torch, so that commands can list them, and so that a mistake is told before weights are fetched; an extractor's
file is imported when it is loaded.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fiducial import Group, UserError, download

SPATIAL_CHANNELS = 7  # of Mixed_6d's first branch; ADM's sFID takes as many so that there are about 2,000 features


@dataclass(frozen=True)
class Weights:
    """A published file of weights. `name` is what --weights calls it, `title` what sentences do.

    `form` is what files hold such weights, `sha256` the first digits of the published one's hash, None where that is not known
    here; `besides` ends the sentence that it is missing. It is kept as `saved_as`, or by the last part of its address; the same
    file may be there as others keep it, `also_called` so.
    """

    name: str
    title: str
    url: str
    form: str
    sha256: str | None = None
    besides: str = ""
    saved_as: str = ""
    also_called: tuple[str, ...] = ()

    def are_published(self, sha256: str) -> bool | None:
        """Whether a file with this hash is the published one, None where that is not known."""
        return None if self.sha256 is None else sha256.startswith(self.sha256)

    def kept_at(self, cache_dir: str | Path | None) -> Path:
        """Where the published file is kept: in Fiducial's cache if a person says where that is, else in torch's hub cache."""
        import torch

        folder = Path(cache_dir or torch.hub.get_dir()) / "checkpoints"
        own = folder / (self.saved_as or self.url.rsplit("/", 1)[1])
        others = (folder / name for name in self.also_called)
        return next((path for path in others if path.is_file() and not own.exists()), own)

    def fetch(self, cache_dir: str | Path | None = None) -> Path:
        """The published file, downloaded if it is not there.

        Raises:
            UserError: if it cannot be had.
        """
        try:
            return download(self.url, self.kept_at(cache_dir), *([self.sha256] if self.sha256 else []))
        except UserError as error:
            raise UserError(
                f"the {self.title} weights are missing: {error}, or give it as --weights {self.name}=FILE{self.besides}"
            ) from error

    def find(self, given: str | Path | None, group: Group, cache_dir: str | Path | None = None) -> Path:
        """The file of weights: the one given, else the published one, which rank 0 fetches first, then nodes that do not see it.

        Raises:
            UserError: if there is none and it cannot be fetched.
        """
        if given is not None:
            return Path(given)
        return Path(group.once_per_node([f"{self.name}-weights", cache_dir], lambda: str(self.fetch(cache_dir)), main_first=True))


@dataclass(frozen=True)
class ExtractorSpec:
    """An extractor before it is loaded.

    `dimension` is that of its features, `spatial_dimension` that of spatial ones, 0 where it has none; `features` and `logits`
    are what definitions of metrics call its outputs. `weights` are published ones, None where they are embedded; `build`, as
    "file.function" of this package, takes this row, a path of weights (or None), a device and a dtype's name, and gives an
    `Extractor`. `suffix` belongs in the name of every metric made with it, `distance` is what a Fréchet distance over it is
    called. `caveats` says, by protocol, in what the network differs from that protocol's own; `comparable` is whether others
    publish numbers over it, `resized_as` whose resize it has. `packages` are those that its features depend on beside torch,
    `dtypes` what it runs in.
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


def differs_from_adm(name: str | None) -> bool:
    """Whether numbers are published over this extractor's features, and those are not the ones of ADM's statistics."""
    return name != DEFAULT and name in EXTRACTORS and EXTRACTORS[name].comparable


def parse_weights(texts: Sequence[str] | None, **others: Path | None) -> dict[str, Path]:
    """Files by the name of whose weights they are.

    Args:
        texts: NAME=FILE each, or several with commas between; None for none.
        others: files that were given by options of their own.

    Raises:
        UserError: if one is not that, or given twice.
    """
    found = {}
    for text in [part for given in texts or () for part in re.split(r",(?=[a-z0-9-]+=)", given)]:
        name, _, path = text.partition("=")
        if name not in WEIGHTS or not path:
            raise UserError(f"--weights {text}: give NAME=FILE, where NAME is one of {', '.join(WEIGHTS)}")
        if name in found:
            raise UserError(f"--weights {text}: those of {name} are given twice")
        found[name] = Path(path)
    for name, path in others.items():
        if path is not None and name in found:
            raise UserError(f"--weights {name}={found[name]} and --{name}-weights {path}: give only one of them")
    return found | {name: path for name, path in others.items() if path is not None}
