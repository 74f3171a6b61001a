"""What a reviewer and a paper need: the setting at the top, the sentence on the protocol, LaTeX, CSV, plots, verdicts."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import run_command
from made_results import IDENTITY, NASTY, Page, made, whole
from test_evaluation_compare import command, compared, write  # noqa: F401 (a fixture)

from fiducial.evaluation.data.runs import Row
from fiducial.evaluation.report import comparison_page, report_page, result_table
from fiducial.evaluation.report.page import plots_of
from fiducial.evaluation.report.paper import comparison_csv, comparison_latex, escaped, result_csv, result_latex
from fiducial.evaluation.report.plots import Bar, drawn, lines_figure
from fiducial.evaluation.results.judging import after_holm, answer, axis, best, on_many, verdicts
from fiducial.evaluation.results.summary import facts, sentence, title
from scripts.stand_ins import pictures

KNOWN = IDENTITY | {"sampler": "ddim", "num_sampling_steps": "50", "cfg_channels": 3, "labels": "balanced"}
KNOWN |= {"checkpoint_sha256": "ab" * 32, "guidance_interval": [0.1, 0.7]}
ROW = Row("dit", "its README", {"fid": "2.27"}, [], "random", "ref.npz", "dit", "adm", 1000, {}, [], [])


def drawn_result():
    """Of a run with a published row and a checkpoint that was downloaded."""
    result = made(identity=KNOWN, fiducial={"version": "7.8", "commit": "cd" * 20, "command": "python -m evaluation calc"})
    files = {"ckpt": "dit.pt", "weights": "ema", "source": "downloaded from https://example.org/dit.pt"}
    return result.drawn_by(replace(result.run, published=ROW, command="python sample_ddp.py", files=files))


def test_the_setting_is_at_the_top_with_the_published_number_and_the_commands():
    result = drawn_result()
    page = Page(report_page(result))
    said = "FID 2.50: DiT-XL/2, ddim, 50 steps, cfg 1.5 on 3 channels in [0.1, 0.7], 1,000 samples"
    assert page.texts["h1"] == page.texts["title"] == [said] == [title(result)]
    found = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))
    assert found == facts(result)
    assert found["labels"] == "balanced"
    assert found["seed"] == "0"
    assert found["model's weights"] == "dit.pt (ema), downloaded from https://example.org/dit.pt; SHA-256 abababababab"
    assert found["version"] == "Fiducial 7.8 (cdcdcdcdcdcd)"
    assert page.texts["pre"] == ["python sample_ddp.py", "python -m evaluation calc"]
    assert page.texts["span"][:2] == ["2.00 to 3.00", "published 2.27: within both intervals"]
    top = page.tags[: page.tags.index("table")]
    assert {"h1", "dl", "pre"} <= set(top)


def test_what_nobody_knows_is_said():
    found = facts(made(identity={}, reference=None))
    assert found["model"].startswith("not known: no manifest")
    assert {found[name] for name in ("sampler and steps", "guidance", "seed", "model's weights")} == {"not known"}
    assert found["reference"] == "none"
    generator = facts(made(identity={"generator": "x.py", "global_seed": 3}))
    assert generator["model"] == "a generator of one's own"


def test_the_sentence_states_the_protocol_in_table_page_and_latex():
    result = drawn_result()
    said = sentence(result)
    for part in (
        "FID, precision, recall, density, coverage, FID-infinity, AuthPct of 1,000 samples of DiT-XL/2 at 64 x 64",
        "(ddim, 50 steps; cfg 1.5 on 3 channels in [0.1, 0.7]; balanced labels; seed 0) against ref.npz",
        "by the protocol adm, on pool3 (2,048)",
        "computed with Fiducial 7.8 (cdcdcdcdcdcd); intervals are 95 % over drawing anew.",
    ):
        assert part in said
    assert result_table(result).endswith(said)
    assert said in Page(report_page(result)).texts["p"]
    assert result_latex(result).startswith(f"% {said}\n\\begin{{tabular}}{{lccccccc}}\n")


def test_latex_has_a_row_of_the_result_and_one_of_the_published_row():
    lines = result_latex(drawn_result()).splitlines()
    (ours, theirs) = lines[5:7]
    assert ours.startswith(
        r"DiT-XL/2, ddim, 50 steps, cfg 1.5 on 3 channels in [0.1, 0.7], 1,000 samples & 2.50 {\scriptsize (2.00 to 3.00)}"
    )
    assert theirs == r"published: dit & 2.27 &  &  &  &  &  &  \\"
    assert lines[3].startswith(r" & FID $\downarrow$ & precision $\uparrow$")
    assert r"66.8 \%" in ours
    assert (
        escaped(NASTY)
        == r"\$x\$ \textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} \& \textquotedbl{}q\textquotedbl{}"
    )


def test_csv_has_what_json_has():
    result = drawn_result()
    lines = list(csv.DictReader(io.StringIO(result_csv(result))))
    assert [line["metric"] for line in lines] == list(result.metrics)
    for line, one in zip(lines, result.metrics.values(), strict=True):
        assert (float(line["value"]), float(line["low"]), int(line["n"])) == (one.value, one.low, one.n)
    assert (lines[0]["published"], lines[1]["published"], lines[-1]["unit"]) == ("2.27", "", "%")


@pytest.fixture
def sweep(write):  # noqa: F811
    """Four scales: FID is best at the third and told apart from all but the last; precision grows."""
    values = {1.0: (4.0, 0.6), 1.25: (3.0, 0.7), 1.5: (2.5, 0.8), 2.0: (2.6, 0.81)}
    found = {
        cfg: write(f"c{cfg}", {"fid": (fid, 0.05), "precision": (p, 0.01)}, cfg_scale=cfg) for cfg, (fid, p) in values.items()
    }
    return compared(*(found[cfg] for cfg in (1.5, 1.0, 1.25, 2.0)))


def test_better_and_worse_and_the_best_are_by_each_metrics_direction(sweep):
    found = verdicts(sweep)
    assert [found[f"cfg_scale {cfg}", "fid"] for cfg in (1.0, 1.25, 2.0)] == ["worse", "worse", "undecided"]
    assert [found[f"cfg_scale {cfg}", "precision"] for cfg in (1.0, 1.25, 2.0)] == ["worse", "worse", "undecided"]
    assert (best(sweep, "fid").name, best(sweep, "precision").name) == ("cfg_scale 1.5", "cfg_scale 2.0")
    assert (
        answer(sweep, "fid") == "Lowest FID: cfg_scale 1.5, 2.500 (2.400 to 2.600), the base: not told apart from cfg_scale 2.0."
    )
    assert answer(sweep, "precision").endswith(": undecided against the base, cfg_scale 1.5.")


def test_the_page_of_a_comparison_begins_with_the_answer_and_ends_with_the_seeds(sweep):
    page = Page(comparison_page(sweep))
    assert page.texts["h1"] == [answer(sweep, "fid").rstrip(".")]
    assert page.texts["li"] == [answer(sweep, "precision")]
    rows = {row[0]: row for row in page.tables["runs"][:5]}
    assert rows["cfg_scale 1.0"][1] == "4.000 worse3.900 to 4.100"
    assert any("Holm" in text for text in page.texts["p"])


def test_many_comparisons_are_judged_together_by_holm(write):  # noqa: F811
    """P-values of 0.0124, 0.0455 and 0.27 (2.5, 2 and 1.1 errors): alone two are decided, together, at 0.05 / 3 first, one is."""
    error = 0.1 / 2**0.5
    found = [write(f"r{place}", {"fid": (3 + gap, error)}, cfg_scale=1 + place) for place, gap in enumerate((0, 0.25, 0.2, 0.11))]
    comparison = compared(*found)
    assert [one.verdict for one in comparison.differences] == ["decided", "decided", "undecided"]
    assert after_holm(comparison) == {("cfg_scale 2", "fid")}
    assert on_many(comparison).startswith("3 differences are judged, each at 95 %")
    assert "2 are decided; 1 of those still are" in on_many(comparison)
    assert on_many(compared(*found[:2])) == ""


def test_a_setting_that_varies_is_an_axis(write):  # noqa: F811
    runs = [write(f"{s}{cfg}", cfg_scale=cfg, sampler=s, num_sampling_steps="50") for s in ("ddim", "ddpm") for cfg in (2.0, 1.0)]
    along = axis(compared(*runs))
    assert along.name == "cfg_scale"
    assert {called: [place for place, _ in points] for called, points in along.series.items()} == {
        "sampler ddim": [1.0, 2.0],
        "sampler ddpm": [1.0, 2.0],
    }
    steps = [write(f"steps{n}", num_sampling_steps=str(n), sampler="ddim") for n in (250, 50)]
    assert [place for place, _ in axis(compared(*steps)).series[""]] == [50.0, 250.0]
    assert axis(compared(write("x", model="x"), write("y", model="y"))) is None
    figure = lines_figure({"a": [(1.0, Bar("p", 3.0, 2.0, 4.0)), (2.0, Bar("q", 5.0))]}, "cfg_scale", "FID")
    line, interval = figure.axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1.0, 2.0], [3.0, 5.0])
    assert list(interval.get_ydata()) == [2.0, 4.0]


def test_any_run_is_the_base_and_all_forms_are_written(write, tmp_path, monkeypatch, capsys):  # noqa: F811
    a, b = write("a", {"fid": (4.0, 0.1)}, cfg_scale=1.0), write("b", {"fid": (3.0, 0.1)}, cfg_scale=2.0)
    files = [
        "--html",
        tmp_path / "o.html",
        "--latex",
        tmp_path / "o.tex",
        "--csv",
        tmp_path / "o.csv",
        "--plots",
        tmp_path / "plots",
    ]
    code, out, err = command(monkeypatch, capsys, a, b, "--base", b, *files, "--plot-format", "pdf")
    assert code == 0, err
    lines = list(csv.DictReader((tmp_path / "o.csv").open()))
    assert [(line["run"], line["base"], line["verdict"]) for line in lines] == [
        ("cfg_scale 2.0", "", ""),
        ("cfg_scale 1.0", "cfg_scale 2.0", "worse"),
    ]
    assert "decided: worse" in out
    assert r"cfg\_scale 2.0 & \textbf{3.00}" in (tmp_path / "o.tex").read_text()
    (plot,) = (tmp_path / "plots").iterdir()
    assert (plot.name, plot.read_bytes()[:5]) == ("metric-1-fid.pdf", b"%PDF-")
    assert (tmp_path / "o.csv").read_text() == comparison_csv(compared(b, a))
    assert comparison_latex(compared(b, a)).endswith("\\bottomrule\n\\end{tabular}\n")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--csv", "-", "--json", "-"), "error: --json - and --csv -: only one of them can go to standard output"),
        (("--latex", "x.txt"), "error: --latex x.txt"),
        (("--plots", "a.json"), "error: --plots a.json: it is no folder"),
        (("--plots", "no/plots"), "error: --plots no/plots: there is no folder"),
        (("--base", "c.json"), "error: --base c.json: cannot be compared with most of the others"),
    ],
)
def test_outputs_that_cannot_be_are_one_sentence(given, said, write, tmp_path, monkeypatch, capsys):  # noqa: F811
    write("a", cfg_scale=1.0), write("b", cfg_scale=2.0)
    write("c", change=lambda data: data["samples"].update(count=5), cfg_scale=3.0)
    monkeypatch.chdir(tmp_path)
    code, out, err = command(monkeypatch, capsys, "a.json", "b.json", *given)
    assert (code, out) == (2, "")
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.parametrize(("form", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF-"), ("png", b"\x89PNG")])
def test_plots_are_files_of_the_same_bytes_each_time(form, start):
    plots = plots_of(whole())
    assert list(plots) == ["curve", "recall-precision", "coverage-density", "classes-1", "classes-2", "classes-3"]
    one, other = (drawn(plots_of(whole())["curve"].figure, form, "curve") for _ in range(2))
    assert one == other
    assert one.startswith(start)
    assert b"var(--" not in one


def test_calc_writes_them_too(tmp_path):
    """With the JSON on standard output, alone there."""
    np.savez(tmp_path / "s.npz", arr_0=pictures(60, 0, 64))
    files = ["--json", "-", "--latex", tmp_path / "r.tex", "--csv", tmp_path / "r.csv", "--plots", tmp_path / "plots"]
    done = run_command("-m", "evaluation", "calc", tmp_path / "s.npz", "--ref", "digits", *files)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [line["metric"] for line in csv.DictReader((tmp_path / "r.csv").open())] == list(result["metrics"])
    assert (tmp_path / "r.tex").read_text().startswith("% FID-digits, IS-digits")
    assert [path.name for path in sorted((tmp_path / "plots").iterdir())] == ["coverage-density.svg", "recall-precision.svg"]
