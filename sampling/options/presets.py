"""PRESETS: what a name stands for. No torch."""

from collections.abc import Iterator
from typing import Any

from fiducial import UserError
from fiducial.models.checkpoints.catalogue import CATALOGUE
from fiducial.models.decoders.rounding import ROUNDING
from fiducial.sampling.options.rows import DIT, ORDER, Row
from fiducial.sampling.options.rows_of_flows import FLOWS
from fiducial.wings import ASSETS

LIST = "list"  # in the place of a name: print all
ROWS: dict[str, Row] = {row.name: row for row in (*DIT, *FLOWS)}
DIGITS = {
    "model": "DiT-XS/2",
    "ckpt": ASSETS / "digits" / "dit.safetensors",
    "vae": str(ASSETS / "digits" / "vae"),
    "image_size": 64,
    "num_classes": 10,
    "cfg_channels": 4,
    "cfg_scale": 1.5,
    "num_fid_samples": 1000,
    "per_proc_batch_size": 50,
    "sampler": "ddpm",
    "num_sampling_steps": "50",
}
# The same data and autoencoder, by a SiT.
DIGITS_FLOW = DIGITS | {
    "model": "SiT-XS/2",
    "ckpt": ASSETS / "digits" / "sit.safetensors",
    "sampler": "flow-heun",
    "num_sampling_steps": "20",
}
# Defaults that a preset puts in the place of the general ones. What the user says on the command line wins. Labels of a row that
# are random are by another generator here. A row's files are those of the catalogue.
PRESETS: dict[str, dict[str, Any]] = {"digits": DIGITS, "digits-flow": DIGITS_FLOW}
PRESETS |= {name: row.options | CATALOGUE[name].options() for name, row in ROWS.items()}


def settings_of(name: str | None) -> dict[str, Any]:
    """The options that a preset stands for; none without a name.

    Raises:
        UserError: if there is no such preset.
    """
    if name is not None and name not in PRESETS:
        raise UserError(f"--preset {name}: no such preset; --preset {LIST} prints all")
    return dict(PRESETS.get(name, {}))


def told(name: str | None) -> dict[str, Any] | None:
    """The published row of a preset as a manifest keeps it; None where there is none."""
    return ROWS[name].told() if name in ROWS else None


def lines() -> Iterator[str]:
    """All presets for people: what is published of each, what was chosen, and who says so."""
    yield "digits: the embedded model of 64 pixels, with its classes and settings; no published row"
    yield "digits-flow: the same by a flow; no published row"
    for row in ROWS.values():
        numbers = ", ".join(f"{ORDER[name]} {number}" for name, number in row.numbers.items())
        yield f"{row.name}: {numbers}"
        chosen = vars(row.choices)
        yield "    " + "; ".join(f"{name} {said}" for name, said in chosen.items())
        rounding = next(name for name, recorded in ROUNDING.items() if recorded == row.rounding)
        yield (
            f"    labels {row.labels}, N {row.count:,}, rounding {rounding}, against {row.reference}, evaluated by "
            f"{row.evaluator}; source: {row.source}"
        )
        if row.from_memory:
            yield f"    from memory, not read in the source: {', '.join(ORDER[name] for name in row.from_memory)}"
        yield "    files: " + "; ".join(f"--{name.replace('_', '-')} from {said}" for name, said in files_of(row.name).items())
        yield from (f"    note: {note}" for note in row.notes)


def files_of(name: str) -> dict[str, str]:
    """Where the files of a row are, in words, by the options that take them."""
    return {option: place.said for option, place in CATALOGUE[name].places().items()}
