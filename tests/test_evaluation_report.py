"""The report: its numbers, its plots, and that it loads nothing, is small, and takes names for text."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import run_command
from made_results import NASTY, Page, made, whole

from fiducial.evaluation import __main__ as cli
from fiducial.evaluation.metrics.intervals import Estimate
from fiducial.evaluation.report import page, plots, report_page, result_table
from fiducial.evaluation.report.document import document
from fiducial.evaluation.report.plots import Bar
from fiducial.evaluation.results.parts import ClassScore
from fiducial.evaluation.results.result import Result
from scripts.stand_ins import pictures


@pytest.fixture(scope="module")
def report() -> str:
    return report_page(whole(200))


def test_numbers_stand_with_their_intervals(report):
    rows = {row[0]: row[1:5] for row in Page(report).tables["numbers"]}
    assert rows["FID"] == ["2.50", "2.00 to 3.00", "1,000", "1,618"]
    assert rows["precision"] == ["0.750", "0.625 to 0.875", "1,000", "1,618"]
    assert rows["AuthPct"] == ["66.8 %", "64.8 to 68.8 %", "1,000", "1,618"]
    assert "the reference held fixed" in report
    assert "the reference held fixed" not in report_page(made({"fid": (2.0, None)}))


def test_what_made_it_stands_in_json_and_page():
    made_by = {"version": "7.8", "commit": "ab" * 20 + "+changes", "command": f"python -m evaluation calc '{NASTY}'"}
    result = made(fiducial=made_by)
    assert json.loads(result.to_json())["fiducial"] == made_by
    page = Page(report_page(result))
    assert page.texts["pre"] == [made_by["command"]]
    assert f"by Fiducial 7.8 ({made_by['commit']})" in report_page(result)


def test_authpct_is_in_the_table_and_the_json():
    result = whole()
    assert re.search(r"AuthPct +66\.8 % +64\.8 to 68\.8 % +1,000 +1,618", result_table(result))
    written = json.loads(result.to_json())
    assert written["metrics"]["authpct"]["value"] == 66.8
    assert written["training"]["pixels_sha256"] == "dd" * 32
    assert "pictures" not in written["memorisation"]


def test_authpct_is_the_percentage_of_authentic_samples(tmp_path):
    """Ten of forty samples are training images."""
    np.savez(tmp_path / "train.npz", arr_0=pictures(50, 0, 64))
    mixed = np.concatenate([pictures(50, 0, 64)[:10], pictures(30, 1, 64)])
    np.savez(tmp_path / "samples.npz", arr_0=mixed)
    files = ["--json", tmp_path / "r.json", "--html", tmp_path / "r.html", "--metrics", "fid"]
    given = [tmp_path / "samples.npz", "--ref", "digits", "--train", tmp_path / "train.npz", *files]
    cli.run(cli.build_parser().parse_args(["calc", *map(str, given)]))
    written = json.loads((tmp_path / "r.json").read_text())
    found, share = written["metrics"]["authpct-digits"], written["memorisation"]["authentic"]
    assert found["value"] == 100 * share["value"] <= 75
    assert (found["low"], found["high"]) == (100 * share["low"], 100 * share["high"])
    assert (found["n"], found["reference_n"], found["label"]) == (40, 50, "AuthPct-digits")
    assert written["training"]["count"] == 50
    assert re.fullmatch(r"[0-9a-f]{64}", written["training"]["pixels_sha256"])
    alts = {attributes.get("alt") for _, attributes in Page((tmp_path / "r.html").read_text()).attributes}
    assert {f"sample {index}" for index in range(10)} < alts


def test_the_page_is_one_small_file_that_loads_nothing(report):
    assert report.count("data:image/png;base64,") == 20 + 20  # rows of twice five, and both sides of ten pairs
    assert len(report.encode()) < 5_000_000
    for tag, attributes in Page(report).attributes:
        assert tag not in ("script", "link", "iframe", "image"), tag
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,", "data:image/webp;base64,"))
    assert not re.search(r"@import|url\((?!#)|https?:", report)


def test_names_are_text_in_html_and_in_plots(report):
    page = Page(report)
    assert "script" not in page.tags
    assert NASTY in page.texts["bdi"]
    short = NASTY[:9] + "…" + NASTY[-10:]
    assert short in page.texts["text"]
    titled = Page(document(NASTY, NASTY, "", NASTY))
    assert titled.texts["h1"] == [NASTY]
    assert titled.texts["p"] == [NASTY, f"Computed {NASTY} by Fiducial."]
    assert "script" not in titled.tags


def test_ids_are_of_one_plot_each(report):
    attributes = [attributes for _, attributes in Page(report).attributes]
    ids = [found["id"] for found in attributes if "id" in found]
    assert len(ids) == len(set(ids))
    wanted = {found["href"][1:] for found in attributes if "href" in found}
    wanted |= {found["clip-path"][5:-1] for found in attributes if "clip-path" in found}
    assert wanted
    assert wanted <= set(ids)


def test_plots_take_the_colours_and_the_font_of_the_page(report):
    drawn = "".join(re.findall(r"<svg.*?</svg>", report, re.DOTALL))
    assert "var(--accent)" in drawn
    assert "var(--line)" in drawn
    assert not re.search(r"#[0-9a-f]{6}|font-family|<style|<metadata|\d{4}-\d\d-\d\d", drawn)
    assert report.count("<svg") == 6  # three of them of ten classes each
    assert report_page(whole(200)) == report  # the same bytes each time


def drawn_points(svg: str) -> list[tuple[float, float]]:
    """Where round markers stand, in the picture's pixels."""
    root = ElementTree.fromstring(svg)
    round_ones = {path.get("id") for path in root.iter("path") if "C" in path.get("d")}
    return [(float(use.get("x")), float(use.get("y"))) for use in root.iter("use") if use.get("href")[1:] in round_ones]


def test_the_curve_has_its_points_its_line_and_its_end():
    figure = plots.curve_figure(whole().curve, "FID")
    line, points, interval, end = (np.transpose(line.get_data()).tolist() for line in figure.axes[0].lines)
    assert np.allclose(points, [(1, 2.5), (2, 3.75), (1000 / 333, 5), (4, 7)])
    assert np.allclose(line, [(0, 1.25), (1000 / 333, 1.25 + 1250 / 333)])
    assert interval == [[0, 0.75], [0, 1.75]]
    assert end == [[0, 1.25]]
    places = drawn_points(plots.svg(figure, "curve", "FID against N"))
    assert len(places) == 4
    (x0, y0), (x1, y1), _, (x3, y3) = places
    assert (x3 - x0) / (x1 - x0) == pytest.approx(3, abs=0.01)
    assert (y3 - y0) / (y1 - y0) == pytest.approx(3.6, abs=0.01)
    assert y3 < y0  # larger is higher
    texts = Page(plots.svg(figure, "curve", "")).texts["text"]
    assert texts[:5] == ["∞", "1,000", "500", "333", "250"]


def test_pairs_are_on_axes_from_0_to_1_or_beyond():
    axes = plots.pair_figure(Bar("recall", 0.5, 0.4, 0.6), Bar("density", 1.5, 1.25, 2.0)).axes[0]
    assert axes.get_xlim() == (0, 1)
    assert axes.get_ylim() == pytest.approx((0, 2.2))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("recall", "density")
    drawn = [np.transpose(line.get_data()).tolist() for line in axes.lines]
    assert drawn == [[[0.4, 1.5], [0.6, 1.5]], [[0.5, 1.5]], [[0.5, 1.25], [0.5, 2.0]]]


def test_the_worst_classes_are_shown_by_name_and_the_rest_counted(report):
    bars = page.worst_classes(whole())
    assert [bar.value for bar in bars] == [44.0 - place for place in range(30)]
    assert [bar.name for bar in bars[:2]] == [NASTY, "bird 33"]
    assert (bars[0].low, bars[0].high) == (42.0, 46.0)
    remarks = Page(report).texts["p"]
    assert any("The 30 worst; 5 better classes are left out" in text for text in remarks)
    assert any("of 20 samples each" in text for text in remarks)
    axes = plots.bars_figure(bars, "FID").axes[0]
    assert [bar.get_width() for bar in axes.patches] == [bar.value for bar in bars]
    assert axes.get_ylim() == (29.5, -0.5)  # the first at the top
    few = report_page(made(classes=[ClassScore(0, Estimate(1.0), 5, 6), ClassScore(7, Estimate(2.0), 9, 6)]))
    assert "of 5 to 9 samples each" in few
    assert "has too few samples" in few
    assert "left out" not in few
    assert {"class 7", "class 0"} <= set(Page(few).texts["text"])


def test_the_closest_pairs_are_shown_with_their_ratios(report):
    read = Page(report)
    alts = [attributes["alt"] for tag, attributes in read.attributes if tag == "img"][-20:]
    assert alts[:4] == ["sample 0", "training image 100", "sample 1", "training image 101"]
    assert [text[:5] for text in read.texts["figcaption"] if text[:2] == "0."] == [f"{(1 + n) / 16:.3f}" for n in range(10)]
    assert "Closest to the training images" not in report_page(made())


def test_throughput_is_that_of_the_sessions():
    result = made()
    assert Page(report_page(result)).tables["sessions"] == [["600 images", "30.0 s", "20.0 images/s", "8 ranks of NVIDIA H100"]]
    more = {"images": 400, "seconds": 10.0, "ranks": 1, "device": NASTY}
    result.run.__dict__["sessions"] = (*result.run.sessions, more)
    rows = Page(report_page(result)).tables["sessions"]
    assert rows[1:] == [
        ["400 images", "10.0 s", "40.0 images/s", f"1 rank of {NASTY}"],
        ["1,000 images", "40.0 s", "25.0 images/s", "all"],
    ]
    assert "sessions" not in Page(report_page(made(run=None))).tables


def test_a_result_of_one_number_is_a_page_without_plots():
    text = report_page(made({"is": (7.0, None)}, run=None, reference=None, training=None))
    assert "<svg" not in text
    assert Page(text).tables["numbers"][1][:3] == ["IS", "7.0000", ""]


def test_commands_that_make_no_plot_do_not_wait_for_matplotlib():
    code = "import sys, evaluation.evaluate, evaluation.results.compare, evaluation.__main__; print('matplotlib' in sys.modules)"
    assert run_command("-c", code).stdout == "False\n"
    code = "import sys, evaluation.results.compare, evaluation.results.reading; print({'torch', 'PIL'} & set(sys.modules))"
    assert run_command("-c", code).stdout == "set()\n"


def test_a_result_is_read_as_it_was_written():
    """Everything but the pictures, from JSON and back."""
    for result in (whole(), made({"is": (7.0, None)}, run=None, reference=None, training=None)):
        text = result.to_json()
        read = Result.parse(json.loads(text))
        assert read.to_json() == text
        assert read["is" if result.run is None else "fid"] == result["is" if result.run is None else "fid"]
