"""Files that makers have published: what they are of, where they are, and how options become local paths.

Read where: DiT's and SiT's download.py; REPA's utils.py; REPA-E's README and generate.py, by which a run's weights are
`checkpoints/STEPS.pt` and a codec's statistics `CODEC-latents-stats.pt` beside it; LightningDiT's README, also for VA-VAE; the
README of iMF's branch for torch; JiT's README as copies of it have it, for its folder, and scripts of others for the names in it;
DDT's README, which names repositories and no files. RAE's README names decoder and statistics; that they and the networks are in
`RAE-collections` was read in scripts of others, one of which compares hashes with the hub's. RAEv2's README names the repository,
its configuration for sampling the files. Of MeanFlow-XL/2 no place was found.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from fiducial import UserError
from fiducial.models.checkpoints import hub
from fiducial.models.checkpoints.places import HUB, PUBLISHED, HubFile, Page, Place, Url, hub_file
from fiducial.wings import ASSETS

OFFICIAL = "https://dl.fbaipublicfiles.com/DiT/models"
DROPBOX = "https://www.dl.dropboxusercontent.com/scl/fi"
FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")  # endings of a file of weights, which no hub id has
USUAL_VAE = "ema"


@dataclass(frozen=True)
class Published:
    """Files of a published row, and the name of the reference (see `python -m evaluation`) that its numbers are given against.

    `vae` is as `--vae` says it, or a place. `is_bare`: the file holds one network's weights and no others.
    """

    checkpoint: Place
    model: str
    image_size: int
    num_classes: int
    reference: str
    vae: Place | str = USUAL_VAE
    latent_stats: Place | None = None
    guidance_ckpt: Place | None = None
    is_bare: bool = True

    def path(self, cache_dir: Path | None) -> Path:
        """Where the checkpoint is kept."""
        return self.checkpoint.path(cache_dir)

    def options(self) -> dict[str, Path | str]:
        """Those that bring its files beside what a run of its model takes by itself."""
        found: dict[str, Path | str] = {}
        if len({one.checkpoint for one in CATALOGUE.values() if one.shape == self.shape}) > 1:
            found["ckpt"] = Path(PUBLISHED + self.checkpoint.name)
        if not isinstance(self.vae, str):
            found["vae"] = PUBLISHED + self.vae.name
        if self.latent_stats:
            found["latent_stats"] = PUBLISHED + self.latent_stats.name
        if self.guidance_ckpt:
            found["guidance_ckpt"] = Path(PUBLISHED + self.guidance_ckpt.name)
        return found

    def places(self) -> dict[str, Place]:
        """Its files by the options that take them; a codec that `--vae` names is none of them."""
        names = ("vae", "latent_stats", "guidance_ckpt")
        beside = {name: value for name in names if (value := getattr(self, name)) is not None and not isinstance(value, str)}
        return {"ckpt": self.checkpoint, **beside}

    @property
    def shape(self) -> tuple[str, int, int]:
        """Model, image size and number of classes, by which a run without `--ckpt` finds it."""
        return self.model, self.image_size, self.num_classes


ADM_256, ADM_512, JIT_256, IMF_256 = "adm-imagenet-256", "adm-imagenet-512", "jit_in256_stats", "imf-imagenet-256"
SIT = Url("sit-xl-2-256", f"{DROPBOX}/as9oeomcbub47de5g4be0/SiT-XL-2-256.pt?rlkey=uxzxmpicu46coq3msb17b9ofa&dl=0")
REPA = Url(
    "repa-xl-2-256", f"{DROPBOX}/cxedbs4da5ugjq5wg3zrg/last.pt?rlkey=8otgrdkno0nd89po3dpwngwcc&st=apcc645o&dl=0", "repa-last.pt"
)
REPA_E_SDVAE = HubFile("repa-e-sdvae-80-epochs", "REPA-E/sit-repae-sdvae", "checkpoints/0400000.pt")  # its codec is in it
REPA_E_VAVAE = HubFile("repa-e-vavae", "REPA-E/sit-ldm-e2e-vavae", "checkpoints/4000000.pt")
E2E_VAVAE = HubFile("e2e-vavae", "REPA-E/e2e-vavae", "e2e-vavae-400k.pt")
E2E_VAVAE_STATS = HubFile("e2e-vavae-latent-stats", "REPA-E/e2e-vavae", "e2e-vavae-400k-latents-stats.pt")
VAVAE = HubFile("va-vae", "hustvl/vavae-imagenet256-f16d32-dinov2", "vavae-imagenet256-f16d32-dinov2.pt")
VAVAE_STATS = HubFile("va-vae-latent-stats", "hustvl/vavae-imagenet256-f16d32-dinov2", "latents_stats.pt")
RAE_REPOSITORY, RAE_NETWORKS = "nyu-visionx/RAE-collections", "DiTs/Dinov2/wReg_base/ImageNet256"
RAE_XL = HubFile("rae-xl-256", RAE_REPOSITORY, f"{RAE_NETWORKS}/DiTDH-XL/stage2_model.pt")
RAE_S = HubFile("rae-s-256-14-epochs", RAE_REPOSITORY, f"{RAE_NETWORKS}/DiTDH-S_ep14/stage2_model.pt")
RAE_DECODER = HubFile("rae-decoder-dinov2-b", RAE_REPOSITORY, "decoders/dinov2/wReg_base/ViTXL_n08/model.pt")
RAE_STATS = HubFile("rae-latent-stats-dinov2-b", RAE_REPOSITORY, "stats/dinov2/wReg_base/imagenet1k/stat.pt")
RAEV2_REPOSITORY, RAEV2_STAGE_1 = "nyu-visionx/RAEv2-models", "stage1/imagenet/dinov3l-k7"
RAEV2_XL = HubFile("raev2-xl-256", RAEV2_REPOSITORY, "stage2/imagenet/dinov3l-k7/checkpoint.pt")
RAEV2_DECODER = HubFile("raev2-decoder-dinov3-l-k7", RAEV2_REPOSITORY, f"{RAEV2_STAGE_1}/decoder.pt")
RAEV2_STATS = HubFile("raev2-latent-stats-dinov3-l-k7", RAEV2_REPOSITORY, f"{RAEV2_STAGE_1}/stats.pt")
JIT_FOLDER = "https://www.dropbox.com/scl/fo/3ken1avtsd81ip67b9qpi/AK218ZNvXKSv74igVvht4PQ?rlkey=14gjrblmljewpl6ygxzlr3njm&dl=0"
MEANFLOW = Page("meanflow-xl-2-256", "https://github.com/Gsunshine/meanflow", "meanflow-xl-2-256.pt")


def _dit(size: int) -> Published:
    weights = Url(f"dit-xl-2-{size}", f"{OFFICIAL}/DiT-XL-2-{size}x{size}.pt")
    return Published(weights, "DiT-XL/2", size, 1000, ADM_256 if size == 256 else ADM_512)


def _lightningdit(epochs: int) -> Published:
    repository = f"lightningdit-xl-imagenet256-{epochs}ep"
    weights = HubFile(f"lightningdit-xl-1-256-{epochs}-epochs", f"hustvl/{repository}", f"{repository}.pt")
    return Published(weights, "LightningDiT-XL/1", 256, 1000, ADM_256, VAVAE, VAVAE_STATS)


def _jit(size: str) -> Published:
    name = f"jit-{size.lower()}-16"
    weights = Page(f"{name}-256", JIT_FOLDER, f"{name}-256.pth", f"{name}/checkpoint-last.pth")
    return Published(weights, f"JiT-{size}/16", 256, 1000, JIT_256, "pixels", is_bare=False)


def _ddt(size: int) -> Published:
    page = f"https://huggingface.co/MCG-NJU/DDT-XL-22en6de-R{size}"
    weights = Page(f"ddt-xl-2-{size}", page, f"ddt-xl-2-{size}.ckpt", "the .ckpt", "its name there is not known to us")
    return Published(weights, "DDT-XL/2", size, 1000, ADM_256 if size == 256 else ADM_512, is_bare=False)


def _imf(size: str) -> Published:
    weights = HubFile(f"imf-{size.lower()}-2-256", "Lyy0725/iMF", f"iMF-{size}-2.pth")
    return Published(weights, f"iMF-{size}/2", 256, 1000, IMF_256, "mse")


_DITS = {f"dit-xl-2-{size}{scale}": _dit(size) for size in (256, 512) for scale in ("", "-cfg-1.25", "-cfg-1.0")}
_SIT = Published(SIT, "SiT-XL/2", 256, 1000, ADM_256)
_REPA = Published(REPA, "REPA-XL/2", 256, 1000, ADM_256)
_REPA_E_VAVAE = Published(REPA_E_VAVAE, "REPA-XL/1", 256, 1000, ADM_256, E2E_VAVAE, E2E_VAVAE_STATS, is_bare=False)
_RAE = Published(RAE_XL, "RAE-XL/1", 256, 1000, ADM_256, RAE_DECODER, RAE_STATS)
# By the name of the preset of sample_ddp.py that draws from it. No hashes: the makers publish none.
CATALOGUE: dict[str, Published] = {
    **_DITS,
    **{f"sit-xl-2-256-{solver}": _SIT for solver in ("sde", "ode", "sde-cfg-1.0")},
    **{f"repa-xl-2-256{scale}": _REPA for scale in ("", "-cfg-1.0")},
    "repa-e-sdvae-80-epochs": Published(REPA_E_SDVAE, "REPA-XL/2", 256, 1000, ADM_256, REPA_E_SDVAE, is_bare=False),
    **{f"repa-e-vavae{labels}{scale}": _REPA_E_VAVAE for labels in ("", "-balanced") for scale in ("", "-cfg-1.0")},
    **{f"lightningdit-xl-1-256-{n}-epochs{scale}": _lightningdit(n) for n in (800, 64) for scale in ("", "-cfg-1.0")},
    **{f"jit-{size.lower()}-16-256": _jit(size) for size in "BLH"},
    **{f"ddt-xl-2-{size}": _ddt(size) for size in (256, 512)},
    "rae-xl-256-cfg-1.0": _RAE,
    "rae-xl-256": Published(RAE_XL, "RAE-XL/1", 256, 1000, ADM_256, RAE_DECODER, RAE_STATS, RAE_S),
    "raev2-xl-256": Published(RAEV2_XL, "RAEv2-XL/1", 256, 1000, JIT_256, RAEV2_DECODER, RAEV2_STATS, is_bare=False),
    "meanflow-xl-2-256": Published(MEANFLOW, "MeanFlow-XL/2", 256, 1000, "MeanFlow's own statistics of ImageNet", "mse"),
    **{f"imf-{size.lower()}-2-256": _imf(size) for size in ("B", "L", "XL")},
    "imf-xl-2-256-2-steps": _imf("XL"),
}
# By what follows `published:`.
PLACES: dict[str, Place] = {place.name: place for one in CATALOGUE.values() for place in one.places().values()}


def place_of(given: Path | str | None) -> Place | None:
    """The place that an option says as `published:NAME` or `hf:OWNER/NAME/FILE`; None where it says a path, a hub id or the like.

    Raises:
        UserError: if there is no such published file, or it is no file of the hub.
    """
    text = str(given or "")
    if text.startswith(HUB):
        return hub_file(text)
    if not text.startswith(PUBLISHED):
        return None
    if (found := PLACES.get(name := text.removeprefix(PUBLISHED))) is None:
        closest = get_close_matches(name, PLACES, 1)
        said = f"the closest is {PUBLISHED}{closest[0]}" if closest else f"choose from {', '.join(PLACES)}"
        raise UserError(f"{text}: no such published file; {said}")
    return found


def find(ckpt: Path | None, model: str, image_size: int, num_classes: int, cache_dir: Path | None = None) -> Path:
    """The local path of the checkpoint that `--ckpt` names, or of the published one, downloaded where it has to be.

    Raises:
        UserError: if it cannot be had, or there is none for this model.
    """
    if ckpt is None:
        return choose(model, image_size, num_classes).checkpoint.find("--ckpt", cache_dir)
    return find_given(ckpt, "--ckpt", cache_dir)


def find_given(ckpt: Path, option: str, cache_dir: Path | None = None) -> Path:
    """The local path of a checkpoint that an option names, downloaded where it has to be.

    A place is looked up; a path that exists is taken as it is; else owner/name is a diffusers model of the hub.

    Raises:
        UserError: if it cannot be had.
    """
    if place := place_of(ckpt):
        return place.find(option, cache_dir)
    if is_path(ckpt):
        return ckpt
    folders = ("", "transformer/")  # of a transformer alone, or of a pipeline
    return hub.snapshot(str(ckpt), f"{option} {ckpt} (no such path here)", cache_dir, folders, older=True)


def unlike_published(ckpt: Path | None, model: str, image_size: int, num_classes: int, cache_dir: Path | None) -> str | None:
    """A sentence on weights that were given where others are published for this model; None where there is nothing to say."""
    if ckpt is None or place_of(ckpt):
        return None
    there = {one.path(cache_dir): one for one in CATALOGUE.values() if one.shape == (model, image_size, num_classes)}
    if not there or ckpt.absolute() in {path.absolute() for path in there}:
        return None
    names = " or ".join(path.name if path.suffix in FILES else one.checkpoint.name for path, one in there.items())
    return f"--ckpt {ckpt} may be another than the published {names}, of which no hash is known: its own is recorded"


def source_of(ckpt: Path, cache_dir: Path | None) -> str | None:
    """The origin of a checkpoint in words; None for another file than those that are published, or embedded."""
    if ckpt.absolute().is_relative_to(ASSETS):
        return "shipped with Fiducial"
    there = {published.path(cache_dir).absolute(): published.checkpoint.said for published in CATALOGUE.values()}
    said = there.get(ckpt.absolute())
    return said and f"from {said}"


def is_path(ckpt: Path) -> bool:
    """Whether it names a file or folder, there or not, and neither a place nor a model of the hub."""
    return place_of(ckpt) is None and (ckpt.exists() or ckpt.suffix in FILES or not hub.is_hub_id(str(ckpt)))


def choose(model: str, image_size: int, num_classes: int) -> Published:
    """The published weights for a run without `--ckpt`.

    Raises:
        UserError: if there are none, or several.
    """
    found = {name: one for name, one in CATALOGUE.items() if one.shape == (model, image_size, num_classes)}
    weights = {one.checkpoint: name for name, one in reversed(found.items())}
    if len(weights) == 1:
        return next(iter(found.values()))
    if weights:
        raise UserError(
            f"--ckpt is missing: several weights of {model} at {image_size} are published; give --preset "
            f"{' or '.join(reversed(weights.values()))}, or one as --ckpt, such as {PUBLISHED}{next(iter(weights)).name}"
        )
    sizes: dict[int, None] = {one.image_size: None for one in CATALOGUE.values() if one.model == model}
    beside = f" (at --image-size {' and '.join(map(str, sizes))} with 1000 there are)" if sizes else ""
    raise UserError(
        f"--ckpt is missing: weights are published for what --preset list prints, not for {model} at {image_size} with "
        f"{num_classes} classes{beside}; give a checkpoint, or --preset digits for the embedded model"
    )


def check_codec(model: str, image_size: int, num_classes: int, vae: str) -> None:
    """Raise UserError where a run without `--ckpt` left the codec as most have it, and the published weights have another."""
    wanted = choose(model, image_size, num_classes).vae
    if vae == USUAL_VAE and wanted != USUAL_VAE:
        names = [name for name, one in CATALOGUE.items() if one.shape == (model, image_size, num_classes)]
        said = wanted if isinstance(wanted, str) else PUBLISHED + wanted.name
        raise UserError(
            f"--vae {vae}: the published weights of {model} go with --vae {said}; give --preset {names[0]}, which brings it"
        )
