"""A result in a few words: the setting that its numbers are of, and a sentence for a paper that states the protocol."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fiducial import described, printable
from fiducial.evaluation.data.published import PUBLISHED
from fiducial.evaluation.features import EXTRACTORS
from fiducial.evaluation.results.parts import Number
from fiducial.evaluation.results.result import Result
from fiducial.evaluation.results.wording import number

SHOWN = 80  # characters of a value
DIGITS = 12  # of a hash
EMBEDDED = ("digits", "reference.npz")  # the last parts of its path
UNKNOWN = "not known: no manifest of a run lies beside the samples"


def headline(result: Result) -> Number | None:
    """The number that stands for the result: the first one; None where there is none."""
    return next(iter(result.metrics.values()), None)


def title(result: Result) -> str:
    """The title of a result, which says what was drawn and how well: the first number, then model, sampler, guidance and N."""
    first = headline(result)
    how_well = f"{first.label} {number(first.value, first.unit, first.low, first.high)}" if first else "no number"
    return f"{how_well}: {setting(result)}"


def setting(result: Result) -> str:
    """Model, sampler, steps, guidance and N in one line; the file's name where nothing says what drew it."""
    known = result.run.identity if result.run else {}
    parts = [text for text in (_text(known, "model"), _sampler(known), _guidance(known)) if text]
    return ", ".join([*(parts or [printable(Path(result.samples["path"]).name)]), f"{result.samples['count']:,} samples"])


def facts(result: Result) -> dict[str, str]:
    """The facts that a reviewer asks of the numbers, by name: each is said, also that it is not known."""
    run, samples = result.run, result.samples
    known = run.identity if run else {}
    height, width = samples["image_size"]
    spread = samples.get("labels")
    labels = _text(known, "labels")
    return {
        "N": f"{samples['count']:,} samples of {width} x {height}",
        "model": _text(known, "model") or (UNKNOWN if run is None else "a generator of one's own"),
        "sampler and steps": _sampler(known) or "not known",
        "guidance": _guidance(known) or "not known",
        "labels": ": ".join(filter(None, (labels, spread))) or "none",
        "seed": _text(known, "global_seed") or "not known",
        "reference": reference_of(result),
        "protocol": protocol_of(result),
        "model's weights": weights_of(result) or "not known",
        "extractor's weights": _extractor_weights(result),
        "version": version_of(result),
    }


def commands(result: Result) -> dict[str, str]:
    """The commands that repeat the result, by what they do."""
    drawn, evaluated = result.run and result.run.command, result.fiducial.get("command")
    found = {"draw": drawn} if drawn and drawn != evaluated else {}
    return found | ({("draw and evaluate" if drawn == evaluated else "evaluate"): evaluated} if evaluated else {})


def sentence(result: Result) -> str:
    """A sentence for a paper: what was computed of how many samples of what, against what, as whom, by which version."""
    known = result.run.identity if result.run else {}
    model = _text(known, "model") or printable(Path(result.samples["path"]).name)
    height, width = result.samples["image_size"]
    labels = _text(known, "labels")
    how = [_sampler(known), _guidance(known), f"{labels} labels" if labels else ""]
    how += [f"seed {known['global_seed']}"] if "global_seed" in known else []
    drawn = f" ({'; '.join(filter(None, how))})" if any(how) else ""
    against = f" against {reference_of(result)}" if result.reference else ""
    intervals = "; intervals are 95 % over drawing anew" if any(m.low is not None for m in result.metrics.values()) else ""
    deviating = sorted({m.label for m in result.metrics.values() if m.deviations})
    beyond = f"; {', '.join(deviating)} deviate from the protocol as the report says" if deviating else ""
    return (
        f"{', '.join(m.label for m in result.metrics.values())} of {result.samples['count']:,} samples of {model} at "
        f"{width} x {height}{drawn}{against}, by the protocol {protocol_of(result)}, weights {_extractor_weights(result)}, "
        f"computed with {version_of(result)}{intervals}{beyond}."
    )


def version_of(result: Result) -> str:
    """Version and the first digits of the commit, with "+changes" where files differed from it."""
    commit, mark, changes = (result.fiducial.get("commit") or "").partition("+")
    return described(result.fiducial | {"commit": f"{commit[:DIGITS]}{mark}{changes}"})


def reference_of(result: Result) -> str:
    """The reference by its published name, or its file's, with how many images it is of."""
    found = result.reference
    if found is None:
        return "none"
    path = Path(str(found.get("path")))
    embedded = "digits, the embedded one" if path.parts[-2:] == EMBEDDED else printable(path.name)
    name = next((one for one, row in PUBLISHED.items() if found.get("url") == row.url), embedded)
    counts = [one for one in (found.get("count"), found.get("images")) if one]
    return name + (f" ({counts[0]:,} images)" if counts else "")


def protocol_of(result: Result) -> str:
    """Whose definitions, over which features."""
    name = str(result.extractor.get("name"))
    features = EXTRACTORS[name].features if name in EXTRACTORS else f"the features of {printable(name)}"
    return f"{printable(str(result.settings.get('protocol')))}, on {features}"


def weights_of(result: Result) -> str:
    """The run's checkpoint: its file, which of its weights, where it was downloaded from, and its hash."""
    if result.run is None:
        return ""
    files, sha256 = result.run.files, _text(result.run.identity, "checkpoint_sha256")
    if not sha256:
        return ""
    name = printable(files["ckpt"]) if "ckpt" in files else "a file"
    source = files.get("source")
    published = printable(source) if source else "given as a file; not known to be a published one"
    weights = f" ({printable(files['weights'])})" if "weights" in files else ""
    return f"{name}{weights}, {published}; SHA-256 {sha256[:DIGITS]}"


def _extractor_weights(result: Result) -> str:
    return printable(str(result.extractor.get("weights", "not known")))


def _sampler(known: Mapping[str, Any]) -> str:
    sampler, steps = _text(known, "sampler"), _text(known, "num_sampling_steps")
    return ", ".join(filter(None, (sampler, f"{steps} steps" if steps else "")))


def _guidance(known: Mapping[str, Any]) -> str:
    """The scale of guidance, with what else of it is not as usual."""
    scale, channels, interval = (known.get(name) for name in ("cfg_scale", "cfg_channels", "guidance_interval"))
    if scale is None:
        return ""
    found = f"cfg {_text(known, 'cfg_scale')}"
    if scale == 1:
        return f"{found} (none)"
    if channels is not None:
        found += f" on {_text(known, 'cfg_channels')} channels"
    if isinstance(interval, list) and interval != [0.0, 1.0]:
        found += f" in {_text(known, 'guidance_interval')}"
    return found


def _text(known: Mapping[str, Any], name: str) -> str:
    """A setting as text; empty where it is not there."""
    value = known.get(name)
    return "" if value is None else printable(str(value))[:SHOWN]
