"""Pages of one file each, in one style: nothing is loaded from elsewhere, and whatever comes out of a file is escaped."""

import html
from collections.abc import Iterable

from fiducial import described

INTERVALS = (
    "95 % intervals hold what draws of as many samples from the same model give on average, the reference held fixed; a single "
    "other draw varies by 1.4 times as much. They do not cover training the model anew, which moves FID more (arXiv 2606.20536)."
)


def document(
    title: str, name: str, body: str, created: str, wide: bool = False, fiducial: dict[str, str | None] | None = None
) -> str:
    """A whole page; `title` and `name` are text, `body` is HTML. `fiducial` says by which version, commit and command."""
    command = (fiducial or {}).get("command")
    return PAGE.format(
        title=html.escape(title),
        name=html.escape(name),
        style=STYLE,
        wide=' class="wide"' if wide else "",
        body=body,
        created=html.escape(created),
        fiducial=html.escape(described(fiducial) if fiducial else "Fiducial"),
        command=f"<pre>{html.escape(command)}</pre>" if command else "",
    )


def notes_html(notes: Iterable[str]) -> str:
    """Warnings, or nothing."""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<ul class="warning">{items}</ul>' if items else ""


def figure_html(picture: str, caption: str = "") -> str:
    """An SVG with a sentence below it."""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{picture}{below}</figure>"


STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1a1d21; --paper: #fff; --faint: #667; --line: #ccd2da; --accent: #1f5fbf; --warn: #8a5a00; --warn-paper: #fff7e6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8eb; --paper: #15181c; --faint: #99a; --line: #3c4350; --accent: #7db2ff; --warn: #ffcf7a; --warn-paper: #33290f;
  }
}
body {
  font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
}
body.wide { max-width: 80rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
.name { margin-top: .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td {
  text-align: left; vertical-align: baseline; overflow-wrap: anywhere;
  padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line);
}
thead th, footer, .name { color: var(--faint); font-weight: normal; font-size: .85rem; }
.numbers th, .interval, .count, .value { white-space: nowrap; font-variant-numeric: tabular-nums; }
.value { font-size: 1.3rem; line-height: 1.2; } .interval, .count { font-size: .9rem; }
.definition { font-size: .85rem; } .definition em { color: var(--faint); font-style: normal; }
.remarks, figcaption { color: var(--faint); font-size: .85rem; }
.warning { color: var(--warn); background: var(--warn-paper); padding: .6rem .8rem .6rem 1.8rem; border-radius: .3rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; margin-top: 1.5rem; }
figure { margin: 0; } .plots figure { flex: 0 1 auto; max-width: 100%; }
.plot { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }
.plot text { fill: currentColor; }
figcaption { max-width: 340px; margin-top: .4rem; }
.strips { display: grid; grid-template-columns: repeat(10, 1fr); gap: .8rem .5rem; }
.strips img { display: block; width: 100%; max-width: 96px; margin-bottom: 2px; }
.strips figcaption { line-height: 1.25; font-variant-numeric: tabular-nums; } .strips small { display: block; font-size: .75rem; }
.grid th { vertical-align: middle; font-weight: normal; color: var(--faint); white-space: nowrap; width: 5rem; }
.grid td { border: 0; padding: 2px 0; } .grid th { border: 0; padding-block: 2px; }
.grid th:empty { display: none; }
.named bdi { color: var(--ink); display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.named small { display: block; } .grid.named th { white-space: normal; width: 11rem; padding-right: 1rem; }
footer { margin-top: 2rem; overflow-wrap: anywhere; } footer pre { white-space: pre-wrap; margin-top: 0; }
details { margin-top: .6rem; } summary, details ol { font-size: .85rem; color: var(--faint); overflow-wrap: anywhere; }
details ol { columns: 11rem; column-gap: 3.5rem; padding-left: 3rem; } details li { break-inside: avoid; }
.grid img { max-width: 100%; display: block; }
.facts, .sessions { font-size: .85rem; } .facts th { font-weight: normal; color: var(--faint); width: 14rem; }
.sessions { width: auto; } .sessions th, .sessions td { font-variant-numeric: tabular-nums; border: 0; padding-block: .1rem; }
.sessions td:not(:last-child), .sessions th { white-space: nowrap; }
.runs { table-layout: fixed; } .runs thead th:first-child { width: 13rem; }
.runs td small, .runs th small { display: block; color: var(--faint); font-weight: normal; font-size: .75rem; }
.runs td { font-variant-numeric: tabular-nums; } .decided { font-weight: 600; } .undecided { color: var(--faint); }
@media (max-width: 40rem) {
  .numbers thead, .runs thead { display: none; }
  .numbers tr, .runs tr { padding: .5rem 0; border-bottom: 1px solid var(--line); align-items: baseline; }
  .numbers th, .numbers td, .runs th, .runs td { border: 0; padding: 0; }
  .numbers tr { display: grid; grid-template-columns: auto 1fr auto auto; column-gap: .6rem; }
  .numbers th { grid-column: 1; white-space: normal; } .value { grid-column: 2 / 5; text-align: right; }
  .numbers .definition { grid-column: 1 / 5; }
  .interval, .count { grid-row: 2; font-size: .85rem; } .interval { grid-column: 1; white-space: normal; }
  .count { grid-column: 3; color: var(--faint); } .count + .count { grid-column: 4; }
  .count:has(+ .count:empty) { grid-column: 3 / 5; justify-self: end; }
  .sessions tr { display: flex; flex-wrap: wrap; padding-bottom: .4rem; }
  .count:empty { display: none; } .count::before { content: "N "; } .count + .count::before { content: "reference "; }
  .runs tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .4rem .8rem; }
  .runs th { grid-column: 1 / -1; } .runs td:empty { display: none; }
  .runs td[data-name]::before { content: attr(data-name); color: var(--faint); font-size: .75rem; display: block; }
  .strips { grid-template-columns: repeat(5, 1fr); } .facts th { width: 8rem; }
  .grid th { width: 3.5rem; font-size: .85rem; }
  .named tr, .grid.named th, .named td { display: block; width: auto; } .grid.named th { padding-bottom: 0; }
}
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: {name}</title>
<style>{style}</style>
<body{wide}>
<h1>{title}</h1>
<p class="name">{name}</p>
{body}
<footer><p>Computed {created} by {fiducial}.</p>{command}</footer>
</body>
</html>
"""
