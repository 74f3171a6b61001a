"""The frozen configuration of a run, and the identity by which a run is recognised. Imports no torch."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from fiducial import UserError
from fiducial.diffusion.samplers import SAMPLERS, own_options
from fiducial.models.decoders import rounding
from fiducial.sampling.identity import FINGERPRINT_LETTERS
from fiducial.sampling.options.choices import NULL_LABEL, check_guidance, check_sampler, rare
from fiducial.sampling.options.class_names import has_names
from fiducial.sampling.plan import parse_labels

# What is drawn where there is no checkpoint to say it: the published weights.
PUBLISHED = {"model": "DiT-XL/2", "image_size": 256, "num_classes": 1000}

# Beyond these a number is a slip of the hand, and would exhaust the memory before anything is drawn.
LIMITS = {
    "num_fid_samples": 100_000_000,
    "per_proc_batch_size": 65_536,
    "image_size": 8192,
    "num_classes": (1 << 20) - 1,
    "world_size": 1_000_000,
}
# What says how a network is drawn from, which a generator of somebody's own is not.
OF_NETWORKS = (
    *(
        "ckpt",
        "weights_key",
        "model",
        "vae",
        "latent_stats",
        "latent_multiplier",
        "vae_output",
        "cfg_scale",
        "cfg_channels",
        "sampler",
        "num_sampling_steps",
        "guidance_interval",
    ),
    *("path", "prediction", "grid", "state", "least_time", "noise_scale"),
    *("guidance_ends", "cfg_schedule", "cfg_power", "guidance_by", "guidance_ckpt", "guidance_model"),
    *("network", "rounding", "precision", "compile", "attention", "vae_slicing", "vae_tiling", "offload", "cuda_tuning", "check"),
)
LONGEST_NAME = 255 - len(".npz.part")  # bytes of a run's name that is made here
LONGEST_NAME_OF_A_FILE = 80  # of a checkpoint or VAE, in the run's name


@dataclass(frozen=True)
class SamplingConfig:
    """One run: every choice that a sample depends on, and how many samples there are to be.

    The fields are named after the options of `sample_ddp.py`, which documents them. Model, image size and number of classes are
    None until the checkpoint is read, which says them, unless they were given; without a checkpoint they are those `PUBLISHED`.
    The sampler is None until the network is known, whose row says it.
    """

    ckpt: Path | None = None  # None: the published weights of this model
    generator: str | None = None  # package.module:function, which draws instead of a network
    generator_options: str | None = None  # NAME=VALUE,...
    weights_key: str | None = None  # None: the EMA where it has one
    model: str | None = None
    vae: str = "ema"
    latent_stats: str | None = None  # None: what the checkpoint says, or the codec's configuration
    latent_multiplier: float | None = None  # of what they say; None: 1
    vae_output: str | None = None  # of a ViT decoder's numbers; None: as that of the network's family
    sample_dir: Path = Path("samples")
    cache_dir: Path | None = None  # of what is downloaded
    run_name: str | None = None
    per_proc_batch_size: int = 32
    num_fid_samples: int = 50_000
    image_size: int | None = None
    num_classes: int | None = None
    class_names: Path | None = None  # None: what the checkpoint says, or ImageNet's for 1,000
    cfg_scale: float = 1.5
    cfg_channels: int = 3
    sampler: str | None = None
    own: Mapping[str, float | str] = field(default_factory=dict)  # what is given of samplers' own options, by name
    num_sampling_steps: str = "250"
    labels: str = "random"
    global_seed: int = 0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_ends: str = "closed"
    cfg_schedule: str = "constant"
    cfg_power: float = 4.0
    guidance_by: str = NULL_LABEL  # what is guided away from, where that is no other network
    guidance_ckpt: Path | None = None  # that network
    guidance_model: str | None = None  # None: the same as `model`
    path: str | None = None  # from here on of flows; None: as the network was published
    prediction: str | None = None
    grid: str | None = None  # None: the sampler's
    state: str = "float32"
    least_time: float | None = None
    noise_scale: float | None = None
    network: str = "official"
    rounding: str = "dit"
    exact: bool = False
    precision: str = "auto"
    compile: bool | None = None  # None: where it was measured to pay, and passes verification
    attention: str = "auto"
    vae_slicing: bool | None = None  # None: where it was measured to pay
    vae_tiling: bool = False
    offload: str = "none"
    cuda_tuning: bool | None = None  # None: where it passes verification
    probe: bool = True  # ask the network, once loaded, whether it predicts noise
    check: str = "quick"  # how far the numerics are verified before anything is drawn

    def __post_init__(self) -> None:
        if self.ckpt is None:
            for name in self.untold():
                object.__setattr__(self, name, PUBLISHED[name])

    def untold(self) -> list[str]:
        """The fields that a checkpoint is still to say."""
        names = PUBLISHED if self.generator is None else ("image_size", "num_classes")
        return [name for name in names if getattr(self, name) is None]

    def validate(self) -> None:
        """Refuse everything that can be without opening a file.

        Raises:
            UserError: naming the option, the value received, and the remedy.
        """
        for option in ("per_proc_batch_size", "num_fid_samples", "image_size", "num_classes", "cfg_channels"):
            value = getattr(self, option)
            if value is not None and not 1 <= value <= LIMITS.get(option, value):
                most = f" and at most {LIMITS[option]:,}" if option in LIMITS else ""
                raise UserError(f"--{option.replace('_', '-')} {value}: must be at least 1{most}")
        if not 0 <= self.global_seed < 2**64:
            raise UserError(f"--global-seed {self.global_seed}: must be between 0 and 2**64 - 1")
        if not 1.0 <= self.cfg_scale < float("inf"):
            raise UserError(f"--cfg-scale {self.cfg_scale}: must be a finite number of at least 1.0, which is no guidance")
        _check_generator(self)
        check_guidance(self)
        if self.sampler is not None:
            check_sampler(self)
            self.count_steps()
        _check_speed(self)
        _check_pixels(self)
        if self.labels == "null" and self.cfg_scale != 1.0 and self.generator is None:
            raise UserError(
                f"--cfg-scale {self.cfg_scale}: --labels null is unconditional, with nothing to guide; use --cfg-scale 1.0"
            )
        _check_run_name(self.run_name)
        if self.num_classes is not None and not has_names(self.labels):  # names need the checkpoint's files
            try:
                parse_labels(self.labels, self.num_classes)
            except ValueError as error:
                raise UserError(f"--labels {error}") from error

    def count_steps(self) -> int:
        """The number of steps, by the sampler's row.

        Raises:
            UserError: if the sampler does not take what was given.
        """
        try:
            return SAMPLERS[self.sampler].steps(self.num_sampling_steps)
        except ValueError as error:
            raise UserError(f"--num-sampling-steps {self.num_sampling_steps}: --sampler {self.sampler} {error}") from error

    @property
    def is_guided_by_null(self) -> bool:
        """Whether what is guided away from, if anything is, is a prediction for the null label."""
        return self.cfg_scale != 1.0 and self.guidance_ckpt is None and self.guidance_by == NULL_LABEL

    def sampler_options(self) -> dict[str, float | str]:
        """The sampler's own options by name."""
        return {name: self.own.get(name, option.default) for name, option in SAMPLERS[self.sampler].options.items()}

    def recorded_options(self) -> dict[str, float | str]:
        """As they are recorded: ddim's `eta` of every run, as runs were that are older than others' options."""
        return {"eta": 0.0} | (self.sampler_options() if self.sampler else {})

    def identity(self) -> dict[str, str | int | float | bool | list[float]]:
        """The options that samples are a function of, beside their index; the engine adds what files and hardware resolve to.

        N is not among them, because no label depends on N; nor are paths, whose content is hashed instead.
        """
        before = "model image_size num_classes cfg_scale cfg_channels sampler"
        after = "num_sampling_steps labels global_seed rounding exact vae_tiling"
        return {
            **{name: getattr(self, name) for name in before.split()},
            **self.recorded_options(),
            **{name: getattr(self, name) for name in after.split()},
            "cuda_tuning": bool(self.cuda_tuning),
            **({"network": self.network} if self.network != "official" else {}),  # runs older than the choice keep their names
            "guidance_interval": list(self.guidance_interval),
            **rare(self),  # those that runs older than the choice had no other way of are left out
            "per_proc_batch_size": self.per_proc_batch_size,
        }

    def named_run(self, fingerprint: str) -> str:
        """The run's folder name: DiT's, with the fingerprint's first letters, so that no two configurations share a folder."""
        return self.run_name or _name_of_run(self, fingerprint[:FINGERPRINT_LETTERS])


def _name_of_run(config: SamplingConfig, letters: str) -> str:
    if config.generator is not None:
        drawn_by = f"{config.generator}-size-{config.image_size}-seed-{config.global_seed}-{letters}"
        return re.sub(r"[^\w.+-]", "-", drawn_by)[-LONGEST_NAME:]
    vae, ckpt = Path(config.vae), config.ckpt
    vae_name = vae.parent.name if vae.name == "vae" and vae.parent.name else vae.name
    ckpt_name = ckpt.stem
    if ckpt.name == "transformer" and ckpt.parent.name:
        ckpt_name = ckpt.parent.name
    if ckpt.parent.name == "snapshots":  # of the hub's cache, where a folder's own name is a hash
        ckpt_name = ckpt.parent.parent.name.split("--", 2)[-1]
    names = [ckpt_name[:LONGEST_NAME_OF_A_FILE], vae_name[:LONGEST_NAME_OF_A_FILE]]
    while True:
        parts = f"{config.model}-{names[0]}-size-{config.image_size}-vae-{names[1]}-cfg-{config.cfg_scale}"
        name = re.sub(r"[^\w.+-]", "-", f"{parts}-seed-{config.global_seed}-{letters}")
        if len(os.fsencode(name)) <= LONGEST_NAME or not any(names):
            return name
        longer = max((0, 1), key=lambda one: len(os.fsencode(names[one])))
        names[longer] = names[longer][:-1]


def _check_run_name(name: str | None) -> None:
    if name is not None and (not re.fullmatch(r"\w[\w.+-]{,199}", name) or name.endswith((".npz", ".json", ".html", ".part"))):
        raise UserError(f"--run-name {name!r}: use up to 200 letters, digits, '.', '_', '+' and '-', and no file's ending")


def _check_generator(config: SamplingConfig) -> None:
    if config.generator is None:
        if config.generator_options is not None:
            raise UserError("--generator-options: only used with --generator, which is missing")
        return
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", config.generator):
        raise UserError(f"--generator {config.generator!r}: give a module and a function in it, such as package.module:function")
    generator_settings(config)
    free = {"cfg_scale"} if config.labels == "null" else set()
    free |= {"rounding"} if config.rounding == rounding.NONE else set()  # its floats go to the evaluation as they are
    given = [one.name for one in fields(config) if one.name in OF_NETWORKS and getattr(config, one.name) != one.default]
    given += [name for name, value in config.own.items() if value != own_options()[name].default]
    for name in given:
        if name not in free:
            raise UserError(f"--{name.replace('_', '-')}: not with --generator, which draws by its own means; leave it out")


def generator_settings(config: SamplingConfig) -> dict[str, str]:
    """The values in `--generator-options` by their names, as text.

    Raises:
        UserError: if an entry is not NAME=VALUE, or a name is given twice.
    """
    settings: dict[str, str] = {}
    for entry in filter(None, (config.generator_options or "").split(",")):
        name, equals, value = entry.partition("=")
        if not (equals and (name := name.strip()).isidentifier()):
            raise UserError(f"--generator-options {entry!r}: must be NAME=VALUE, several of them divided by commas")
        if name in settings:
            raise UserError(f"--generator-options {config.generator_options}: {name} is given twice")
        settings[name] = value
    return settings


def _check_pixels(config: SamplingConfig) -> None:
    multiplier = config.latent_multiplier
    if multiplier is not None and (config.latent_stats is None or not 0 < abs(multiplier) < float("inf")):
        reason = (
            "only used with --latent-stats, which is missing" if config.latent_stats is None else "must be a finite number but 0"
        )
        raise UserError(f"--latent-multiplier {multiplier}: {reason}")
    if config.vae_output not in (None, *rounding.OUTPUTS):
        raise UserError(f"--vae-output {config.vae_output}: must be one of {', '.join(rounding.OUTPUTS)}")
    if config.rounding not in rounding.ROUNDING.values():
        raise UserError(f"--rounding {config.rounding}: no such rule; choose from {', '.join(rounding.ROUNDING)}")


def _check_speed(config: SamplingConfig) -> None:
    if config.exact and (config.precision not in ("auto", "fp32") or config.compile or config.cuda_tuning):
        precision = "--tf32" if config.precision == "tf32" else f"--precision {config.precision}"
        said = "--compile" if config.compile else "--cuda-tuning" if config.cuda_tuning else precision
        raise UserError(f"{said}: not with --exact, which is fp32 without compilation or tuning; leave one of them out")
    if config.offload in ("model", "both") and config.cuda_tuning:
        raise UserError(f"--offload {config.offload}: not with --cuda-tuning, whose graphs need the network in one place")
