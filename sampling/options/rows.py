"""Published rows: what somebody's table says of a model, and all that was chosen for it. A preset is a row's choices as options.

Where a row says `from memory`, a number was not read in the source and may be wrong by a slip. No torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HALF_UP, TRUNCATE, HALF_EVEN = "dit", "repa", "half-even"  # as they are recorded
RANDOM, BALANCED = "random", "balanced"
ADM_256, ADM_512, JIT_256 = "adm-imagenet-256", "adm-imagenet-512", "jit_in256_stats"
BY_ADM, BY_FIDELITY, BY_JAX = "adm", "torch-fidelity", "a port of Inception to JAX"
OF_256 = {"image_size": 256, "num_classes": 1000, "num_fid_samples": 50_000}
OF_512 = OF_256 | {"image_size": 512}
ORDER = {"fid": "FID", "sfid": "sFID", "is": "IS", "precision": "precision", "recall": "recall"}


@dataclass(frozen=True)
class Choices:
    """The six choices of a row in words."""

    network: str
    path: str
    grid: str
    solver: str
    guidance: str
    codec: str


@dataclass(frozen=True)
class Row:
    """One published row. `numbers` are texts as they stand in the source, by the names of metrics; `settings` are options."""

    name: str
    family: str
    choices: Choices
    settings: Mapping[str, Any]
    numbers: Mapping[str, str]
    source: str
    labels: str = RANDOM
    reference: str = ADM_256
    rounding: str = HALF_UP
    evaluator: str = BY_ADM
    count: int = 50_000
    from_memory: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The row as options, by their names in a configuration."""
        rounding = {} if self.rounding == HALF_UP else {"rounding": self.rounding}
        labels = {} if self.labels == RANDOM else {"labels": self.labels}
        return {**self.settings, **labels, **rounding}

    def told(self) -> dict[str, Any]:
        """As a run's manifest keeps it, so that an evaluation sets measured beside published."""
        return {
            "name": self.name,
            "source": self.source,
            "numbers": dict(self.numbers),
            "from_memory": list(self.from_memory),
            "labels": self.labels,
            "reference": self.reference,
            "rounding": self.rounding,
            "evaluator": self.evaluator,
            "count": self.count,
            "settings": {name: list(one) if isinstance(one, tuple) else one for name, one in self.options.items()},
            "notes": list(self.notes),
        }


DIT_NOTE = "DiT's README has 2.21 for the ported weights in float32, where the table has 2.27"
DIT_NUMBERS = {
    (256, "1.5"): ("2.27", "4.60", "278.24", "0.83", "0.57"),
    (256, "1.25"): ("3.22", "5.28", "201.77", "0.76", "0.62"),
    (256, "1.0"): ("9.62", "6.85", "121.50", "0.67", "0.67"),
    (512, "1.5"): ("3.04", "5.02", "240.82", "0.84", "0.54"),
    (512, "1.25"): ("4.64", "5.77", "174.77", "0.81", "0.57"),
    (512, "1.0"): ("12.03", "7.12", "105.25", "0.75", "0.64"),
}


def _dit(size: int, scale: str, numbers: tuple[str, ...]) -> Row:
    by_heart = tuple(ORDER) if size == 512 and scale != "1.5" else ()
    return Row(
        f"dit-xl-2-{size}" + ("" if scale == "1.5" else f"-cfg-{scale}"),
        "DiT",
        Choices(
            "DiT-XL/2, noise and variance",
            "DDPM's, linear betas over 1,000 steps",
            "250 respaced timesteps",
            "ddpm",
            f"cfg {scale} on the first 3 of 4 channels" if scale != "1.0" else "none",
            "sd-vae-ft-ema, latents times 0.18215",
        ),
        {
            "model": "DiT-XL/2",
            "vae": "ema",
            "image_size": size,
            "num_classes": 1000,
            "cfg_channels": 3,
            "cfg_scale": float(scale),
            "num_fid_samples": 50_000,
            "sampler": "ddpm",
            "num_sampling_steps": "250",
        },
        dict(zip(ORDER, numbers, strict=True)),
        "DiT's README and paper, arXiv 2212.09748" if not by_heart else "DiT's paper, arXiv 2212.09748",
        reference=ADM_256 if size == 256 else ADM_512,
        from_memory=by_heart,
        notes=(DIT_NOTE,) if (size, scale) == (256, "1.5") else (),
    )


DIT = tuple(_dit(size, scale, numbers) for (size, scale), numbers in DIT_NUMBERS.items())
