"""The result of `fiducial reconstruct` as a table for a terminal and as a page, and the files that it is written to."""

import html
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from PIL import Image

from fiducial import STDOUT, printable
from fiducial.evaluation.metrics import METRICS
from fiducial.evaluation.reconstruction.result import Reconstruction, Shown
from fiducial.evaluation.report.delivery import deliver, warnings_left
from fiducial.evaluation.report.document import commands_html, document, facts_html, notes_html, table_html
from fiducial.evaluation.report.gallery import image_html
from fiducial.evaluation.results.influences import packed
from fiducial.evaluation.results.parts import Number
from fiducial.evaluation.results.wording import between, counted, number

INTERVALS = (
    "95 % intervals hold what as many other images of the same kind would give on average with the same autoencoder; that of "
    "rFID to the originals takes both sides of each pair as drawn together."
)
HASH = 12  # digits of a hash in a sentence


def write(result: Reconstruction, json_file: Path | None, html_file: Path | None, said: Collection[str] = ()) -> None:
    """Write the files that are asked for, and print the table and where they are; warnings `said` before are not repeated.

    Beside a file of JSON goes that of the moves, which it names.

    Raises:
        UserError: if one cannot be written.
    """
    data = {}
    if json_file not in (None, STDOUT) and result.moves:
        told, content = packed(json_file, result.moves)
        result, data = replace(result, influences=told), {json_file.with_name(told.file): content}
    deliver(table(result, said), {json_file: result.to_json, html_file: lambda: page(result)}, data)


def table(result: Reconstruction, said: Collection[str] = ()) -> str:
    """The numbers; below them what is missing, warnings but for those that were `said` there before, and how they were made."""
    rows = [("metric", "value", "95 % interval", "N", "reference"), *(_row(one) for one in result.metrics.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [f"{row[0]:<{widths[0]}}" + "".join(f"  {row[i]:>{widths[i]}}" for i in range(1, 5)) for row in rows]
    notes = [f"left out: {label}: {why}" for label, why in result.left_out.items()] + warnings_left(result.warnings, said)
    return "\n".join(map(printable, [lines[0], "-" * len(lines[0]), *lines[1:], *notes, sentence(result)]))


def _row(one: Number) -> tuple[str, ...]:
    return (one.label, one.shown(), between(one.low, one.high, one.unit), f"{one.n:,}", counted(one.reference_n))


def sentence(result: Reconstruction) -> str:
    """A sentence for a paper: what was computed of which images by which autoencoder, run how, against what."""
    originals, codec = result.originals, result.codec
    height, width = originals["image_size"]
    prepared = f" ({originals['resize']})" if originals["resize"] else ""
    labels = ", ".join(one.label for one in result.metrics.values())
    return (
        f"{labels or 'No number'} of {originals['count']:,} images of {width} x {height}{prepared} reconstructed by "
        f"{codec['vae']} ({codec['kind']}, SHA-256 {codec['vae_sha256'][:HASH]}), {how(result)}{_against(result)}."
    )


def how(result: Reconstruction) -> str:
    """How the autoencoder was run, in words."""
    codec = result.codec
    latents = {
        "mode": "the posterior's mode",
        "sample": f"a sample of the posterior (seed {codec['seed']}, {codec['noise']} by index)",
        "none": "an encoder without a posterior",
    }
    return f"{latents[codec['posterior']]}, {codec['precision']}, rounding {codec['rounding']}"


def _against(result: Reconstruction) -> str:
    if result.extractor is None:
        return ""
    against = Path(result.reference["path"]).name
    is_own = result.reference["path"] == result.originals["path"]
    return f"; distances by {result.extractor['name']} to {'the originals' if is_own else printable(against)}"


def page(result: Reconstruction) -> str:
    """Everything that a result holds."""
    metrics = list(result.metrics.values())
    first = metrics[0] if metrics else None
    name = Path(result.originals["path"]).name
    what = f"{name} reconstructed by {result.codec['vae']}"
    title = f"{first.label} {number(first.value, first.unit, first.low, first.high)}: {what}" if first else what
    lines = [INTERVALS] if any(one.low is not None for one in metrics) else []
    lines += [f"Left out: {label}: {why}." for label, why in result.left_out.items()]
    command = result.fiducial.get("command")
    parts = [
        f'<div class="tiles">{"".join(map(_tile_html, metrics))}</div>',
        _key_html(result),
        commands_html({"repeat": command}) if command else "",
        notes_html(result.warnings),
        f"<h2>Numbers</h2>{_numbers_html(metrics)}",
        f'<p class="remarks">{"<br>".join(map(html.escape, lines))}</p>',
        *(_pictures_html(said, gain, shown) for said, (gain, shown) in result.shown.items()),
        _facts_html(result),
    ]
    return document(title, name, "\n".join(filter(None, parts)), result.created, result.fiducial)


def _tile_html(one: Number) -> str:
    interval = between(one.low, one.high, one.unit) or "no interval"
    arrow = "↓" if METRICS[one.name].less_is_better else "↑"
    return (
        f'<div class="tile"><small>{html.escape(one.label)} {arrow}</small>'
        f"<b>{number(one.value, one.unit, one.low, one.high)}</b><span>{interval}</span></div>"
    )


def _key_html(result: Reconstruction) -> str:
    """The facts that a reviewer asks of the numbers."""
    originals, codec = result.originals, result.codec
    height, width = originals["image_size"]
    facts = {
        "images": f"{originals['count']:,} of {width} x {height}",
        "crop": originals["resize"] or "none: as they are in their files",
        "autoencoder": f"{codec['vae']}, {codec['kind']}, 1/{codec['factor']} with {codec['latent_channels']} channels",
        "weights": f"SHA-256 {codec['vae_sha256'][:HASH]}",
        "latents": how(result).split(", ")[0],
        "scale": _scale(codec),
        "precision": codec["precision"],
        "rounding": codec["rounding"],
        "reference": _against(result).removeprefix("; ") or "none: no distance of distributions",
        "LPIPS": ", ".join(
            f"{one['network']}, {'published weights' if one['as_published'] else 'other weights than the published'}"
            for one in result.perceptual.values()
        )
        or "not computed",
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>" for name, text in facts.items())
    return f'<dl class="key">{items}</dl>'


def _scale(codec: dict) -> str:
    """The scale and shift of a diffusion model's latents, in words; reconstructions do not depend on them."""
    scale, shift = codec["latent_scale"], codec["latent_shift"]
    if scale is None:
        return "each channel's own, or not told by the file; it cancels"
    return f"{scale:g}" + (f", shift {shift:g}" if shift else "") + "; it cancels"


def _numbers_html(metrics: list[Number]) -> str:
    head = ("metric", "value", "95 % interval", "N", "reference", "what it is")
    rows = (
        f"<tr><th>{html.escape(m.label)}</th><td class=value>{m.shown()}</td>"
        f"<td class=interval>{between(m.low, m.high, m.unit)}</td>"
        f"<td class=count>{m.n:,}</td><td class=count>{counted(m.reference_n)}</td>"
        f"<td class=definition>{html.escape(m.definition)}"
        + "".join(f"<br><em>deviation:</em> {html.escape(text)}" for text in m.deviations)
        + "</td></tr>"
        for m in metrics
    )
    return table_html("numbers", head, rows)


def _pictures_html(said: str, gain: int, shown: tuple[Shown, ...]) -> str:
    """A row an image: the original, the reconstruction and their difference."""
    times = f"{gain} times their absolute difference" if gain > 1 else "their absolute difference"
    cells = []
    for one in shown:
        names = {"original": one.original, "reconstruction": one.reconstruction, times: one.difference}
        pictures = "".join(image_html(Image.fromarray(part), html.escape(name)) for name, part in names.items())
        cells.append(
            f'<figure><div class="three">{pictures}</div><figcaption>{html.escape(printable(one.caption))}</figcaption></figure>'
        )
    words = f"From left to right: the original, its reconstruction, {times}; with index and file."
    return f'<h2>{html.escape(said)}</h2><p class="remarks">{words}</p><div class="triples">{"".join(cells)}</div>'


def _facts_html(result: Reconstruction) -> str:
    """The sentence for a paper, and below it every key and hash, folded up."""
    parts = {
        "originals": result.originals,
        "codec": result.codec,
        "reference": result.reference or {},
        "extractor": result.extractor or {},
        **{f"{name} weights": one["sha256"] for name, one in result.perceptual.items()},
        "settings": result.settings,
        "packages": result.packages,
    }
    return facts_html(parts, sentence(result))
