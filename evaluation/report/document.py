"""Pages of one file each, in one style: nothing is loaded from elsewhere, and whatever comes out of a file is escaped."""

import html
from collections.abc import Iterable, Mapping

from fiducial import described
from fiducial.evaluation.report.style import STYLE

INTERVALS = (
    "95 % intervals hold what draws of as many samples from the same model give on average, the reference held fixed; a single "
    "other draw varies by 1.4 times as much. They do not cover training the model anew, which moves FID more (arXiv 2606.20536)."
)


def document(title: str, name: str, body: str, created: str, fiducial: dict[str, str | None] | None = None) -> str:
    """A whole page; `title` and `name` are text, `body` is HTML. `fiducial` says by which version and commit."""
    return PAGE.format(
        title=html.escape(title),
        name=html.escape(name),
        style=STYLE,
        body=body,
        created=html.escape(created),
        fiducial=html.escape(described(fiducial) if fiducial else "Fiducial"),
    )


def commands_html(commands: Mapping[str, str]) -> str:
    """Commands to copy, by what they do."""
    return "".join(
        f'<div class="command"><span>{html.escape(what)}</span><pre>{html.escape(command)}</pre></div>'
        for what, command in commands.items()
    )


def table_html(kind: str, head: Iterable[str], rows: Iterable[str]) -> str:
    """A table of the class `kind`; its `head` is text, its rows are HTML."""
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f'<table class="{kind}">{f"<thead><tr>{names}</tr></thead>" if names else ""}<tbody>{"".join(rows)}</tbody></table>'


def facts_html(parts: Mapping[str, Mapping], sentence: str) -> str:
    """The sentence for a paper, and below it every key and hash of the parts of a result, folded up."""
    rows = [
        f"<tr><th>{html.escape(f'{part} {name}'.replace('_', ' '))}</th><td>{html.escape(str(value))}</td></tr>"
        for part, values in parts.items()
        for name, value in values.items()
        if value is not None
    ]
    folded = folded_html(f"Everything that the numbers depend on: {len(rows)} values and hashes", table_html("facts", (), rows))
    return f"<h2>For a paper</h2><p>{html.escape(sentence)}</p>{folded}"


def folded_html(summary: str, body: str, opened: bool = False) -> str:
    """HTML below a line of text, which opens it."""
    return f"<details{' open' if opened else ''}><summary>{html.escape(summary)}</summary>{body}</details>"


def notes_html(notes: Iterable[str]) -> str:
    """Warnings, or nothing."""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<ul class="warning">{items}</ul>' if items else ""


def figure_html(picture: str, caption: str = "") -> str:
    """An SVG with a sentence below it."""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{picture}{below}</figure>"


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<body>
<h1>{title}</h1>
<p class="name">{name}</p>
{body}
<footer><p>Computed {created} by {fiducial}.</p></footer>
</body>
</html>
"""
