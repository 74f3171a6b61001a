"""Pictures on a page: samples beside real images, of a few classes at once and of every class folded up; closest pairs."""

import base64
import html
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from fiducial.evaluation.data.runs import ClassNames
from fiducial.evaluation.report.document import folded_html, table_html
from fiducial.evaluation.results.grid import Grid, thumbnail
from fiducial.evaluation.results.parts import Memorisation

HALF = 5  # pictures side by side, which a phone's width takes
AT_ONCE = 100  # classes that one fold has
GAP = 4  # pixels between pictures


def gallery_html(grid: Grid, names: ClassNames | None, real: Grid | None = None) -> str:
    """Samples beside real images of the same classes, and every class folded up."""
    real = real or Grid([])
    theirs = dict(real.rows)
    paired = bool(real.rows) and any(label is not None for label in theirs)
    rows = []
    for label, indices in grid.rows:
        place = "" if label is None or grid.classes else f' id="class-{label}"'
        cells = _cell_html(grid.kept, indices, "sample", "samples")
        if paired:
            cells += _cell_html(real.kept, theirs.get(label, []), "real image", "real images")
        rows.append(f"<tr{place}><th>{_title_html(label, names)}</th>{cells}</tr>")
    head = ("", "samples", "real images") if paired else ("", "samples")
    parts = [f'<p class="remarks">{html.escape(chosen(grid))} {html.escape(real.said)}</p>', table_html("grid", head, rows)]
    if real.rows and not paired:
        shown = real.rows[: len(grid.rows)]
        parts.append("<h3>Real images</h3>")
        cells = [_cell_html(real.kept, indices, "real image", "real images") for _, indices in shown]
        parts.append(table_html("grid", (), [f"<tr><th></th>{cell}</tr>" for cell in cells]))
    return "".join(parts) + _every_class_html(grid, real, names)


def chosen(grid: Grid) -> str:
    """A sentence on how the rows of a grid were chosen."""
    most = max((len(indices) for _, indices in grid.rows), default=0)
    if not any(label is not None for label, _ in grid.rows):
        return f"Samples: the first {sum(len(indices) for _, indices in grid.rows):,}, uncurated."
    which = (
        f"{len(grid.rows):,} of {len(grid.classes):,} classes, evenly spaced by their numbers; all are below"
        if grid.classes
        else f"{len(grid.rows):,} classes"
    )
    return f"Rows: {which}; of each the first {most:,} samples by index, uncurated."


def _every_class_html(grid: Grid, real: Grid, names: ClassNames | None) -> str:
    """Every class with a few samples above real images, a hundred a fold."""
    theirs, folds = dict(real.classes), []
    for start in range(0, len(grid.classes), AT_ONCE):
        part = grid.classes[start : start + AT_ONCE]
        cells = "".join(_class_html(label, indices, theirs.get(label, []), grid, real, names) for label, indices in part)
        folds.append(
            folded_html(f"{_words(part[0][0], names)} to {_words(part[-1][0], names)}", f'<div class="cells">{cells}</div>')
        )
    if not folds:
        return ""
    rows = "above samples, below real images" if theirs else "samples"
    return folded_html(f"All {len(grid.classes):,} classes: {rows}", "".join(folds))


def _class_html(
    label: int | None, indices: list[int], others: list[int], grid: Grid, real: Grid, names: ClassNames | None
) -> str:
    pictures = _strip_html(grid.small, indices, "sample", "WEBP")
    pictures += _strip_html(real.small, others, "real image", "WEBP") if others else ""
    return f'<figure id="class-{label}">{pictures}<figcaption>{_title_html(label, names)}</figcaption></figure>'


def _cell_html(kept: Mapping[int, np.ndarray], indices: list[int], what: str, called: str) -> str:
    halves = [indices[start : start + HALF] for start in range(0, len(indices), HALF)]
    strips = "".join(_strip_html(kept, half, what) for half in halves)
    return f'<td data-name="{called}"><div>{strips}</div></td>' if strips else "<td></td>"


def _strip_html(kept: Mapping[int, np.ndarray], indices: list[int], what: str, form: str = "PNG") -> str:
    """Pictures side by side, as one."""
    images = [Image.fromarray(kept[index]) for index in indices]
    width, height = images[0].size
    columns = HALF if form == "PNG" else len(images)  # a row that is not full is as wide as the others
    row = Image.new("RGBA", (columns * (width + GAP) - GAP, height))
    for position, image in enumerate(images):
        row.paste(image, (position * (width + GAP), 0))
    return image_html(row, f"{what}{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}", form)


def image_html(image: Image.Image, words: str, form: str = "PNG") -> str:
    """A picture within the page: without loss as PNG, or of a tenth of the size as WEBP."""
    buffer = io.BytesIO()
    image.save(buffer, format=form, **({"quality": 75, "method": 2} if form == "WEBP" else {}))
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/{form.lower()};base64,{data}" alt="{words}" title="{words}" {size}>'


def pairs_html(found: Memorisation | None) -> str:
    """The samples that look most like a training image, above it."""
    if not found or not found.pictures:
        return ""
    strips = "".join(
        f"<figure>{image_html(Image.fromarray(thumbnail(ours)), f'sample {pair.sample}')}"
        f"{image_html(Image.fromarray(thumbnail(theirs)), f'training image {pair.training}')}"
        f"<figcaption>{pair.ratio:.3f}<small>{pair.sample:,}<br>{pair.training:,}</small></figcaption></figure>"
        for pair, (ours, theirs) in zip(found.pairs, found.pictures, strict=True)
    )
    return (
        f'<h2>Closest to the training images</h2><div class="strips">{strips}</div>'
        '<p class="remarks">Above the sample, below the training image nearest to it, then their distance over that '
        "training image's to its own nearest fellow (near 0 for a copy, below 1 where the sample does not count as authentic), "
        f"and the indices of both. Of {found.n:,} samples and {found.training_n:,} training images.</p>"
    )


def class_name(label: int | None, names: ClassNames | None) -> str:
    """A class's name; its number where there is none, or one that says no more."""
    name = names and label is not None and names[label]
    return name if name and name != str(label) else f"class {label}"


def _words(label: int | None, names: ClassNames | None) -> str:
    """A class in a line: its number, and its name if it has another."""
    name = class_name(label, names)
    return name if name == f"class {label}" else f"{label} {name}"


def _title_html(label: int | None, names: ClassNames | None) -> str:
    """The heading of a class; a name, unless it is the number, has its number below."""
    if label is None:
        return ""
    name = class_name(label, names)
    plain = f"class {label}"
    return name if name == plain else f"<bdi>{html.escape(name)}</bdi> <small>{plain}</small>"


def names_html(names: ClassNames | None) -> str:
    """All class names, folded up."""
    if not names:
        return ""
    items = "".join(f"<li><bdi>{html.escape(name)}</bdi></li>" for name in names.names)
    return folded_html(f"{len(names.names):,} class names, SHA-256 {names.sha256}", f'<ol start="0">{items}</ol>')
