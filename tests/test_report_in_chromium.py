"""Pages in a real browser, at the width of a screen and of a phone, light and dark: nothing overflows, no picture is missing."""

import html
import json
import shutil
import subprocess

import numpy as np
import pytest
from made_results import NASTY, filled, made, whole
from test_evaluation_compare import compared, write  # noqa: F401 (a fixture)

from fiducial.evaluation.report import comparison_page, report_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (1280, 390)
SCRIPT = """
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    page.querySelectorAll("details").forEach(one => one.open = true);
    const beyond = [...page.body.querySelectorAll("*")].filter(one => one.getBoundingClientRect().right > root.clientWidth + 1);
    return {
      width: frame.contentWindow.innerWidth, scroll: page.scrollingElement.scrollWidth,
      beyond: beyond.filter(one => !one.closest("svg")).map(one => `${one.tagName}.${one.className}`).slice(0, 5),
      pictures: page.images.length, missing: [...page.images].filter(one => !one.naturalWidth).length,
      plots: [...page.querySelectorAll("svg.plot")].filter(one => one.getBoundingClientRect().width > 250).length,
      paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    };
  });
  document.body.innerHTML = "";
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
});
"""


def seen(folder, pages: list[str], dark: bool) -> list[dict]:
    """What a browser makes of each page at each width."""
    frames = "".join(
        f'<iframe width="{width}" height="900" frameborder="0" srcdoc="{html.escape(page)}"></iframe>'
        for page in pages
        for width in WIDTHS
    )
    (folder / "all.html").write_text(f"<!doctype html><meta charset=utf-8><script>{SCRIPT}</script><body>{frames}</body>")
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1400,900",
        "--virtual-time-budget=5000",
        "--dump-dom",
    )
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [CHROMIUM, *options, scheme, f"--user-data-dir={folder / 'profile'}", f"file://{folder / 'all.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "FOUND" in done.stdout, done.stderr[-2000:]
    return json.loads(html.unescape(done.stdout.rpartition("FOUND")[2].partition("END")[0]))


@pytest.fixture
def pages(write) -> list[str]:  # noqa: F811
    """A result with all parts, whose names and paths are long, one of many classes, and a comparison."""
    long = "x" * 300
    many = filled([label for label in range(30) for _ in range(4)], 64).of_every_class(np.repeat(np.arange(30), 4))
    many.small = {index: many.kept.get(index, next(iter(many.kept.values()))) for _, row in many.classes for index in row}
    runs = [write(f"c{cfg}-{seed}", model=NASTY, cfg_scale=cfg, global_seed=seed) for cfg in (1.0, 1.5, 2.0) for seed in (0, 1)]
    told = {"version": "7.8", "commit": None, "command": f"python -m evaluation calc {long} '{NASTY}'"}
    return [
        report_page(whole(200)),
        report_page(made(grid=many, real=many, fiducial=told, warnings=(long, NASTY))),
        comparison_page(compared(*runs), {f"cfg_scale {cfg}": many.kept for cfg in (1.0, 2.0)}),
    ]


@pytest.mark.parametrize("dark", [False, True])
def test_pages_fit_a_screen_and_a_phone_and_have_their_pictures(dark, pages, tmp_path):
    if not CHROMIUM:
        pytest.skip("there is no chromium here")
    found = seen(tmp_path, pages, dark)
    assert [one["width"] for one in found] == list(WIDTHS) * 3
    for one in found:
        assert one["scroll"] <= one["width"], one
        assert one["beyond"] == [], one
        assert one["missing"] == 0, one
        assert one["plots"] > 0, one
        assert one["paper"] == ("rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)")
    assert [one["pictures"] > 0 for one in found] == [True] * 6
