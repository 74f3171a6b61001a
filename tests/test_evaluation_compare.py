"""`compare`: pooled values and differences against numbers worked out by hand, both verdicts, and every refusal."""

import json
import sys

import pytest
from conftest import run_command
from made_results import IDENTITY, NASTY, Page, made

import fiducial
from fiducial import UserError
from fiducial.evaluation import __main__ as cli
from fiducial.evaluation.report import comparison_page, comparison_table
from fiducial.evaluation.results.compare import compare
from fiducial.evaluation.results.reading import find_result, read_result


@pytest.fixture
def write(tmp_path):
    """Writes a result and gives its file; `pixels` tell it from others, `change` edits what is written."""

    def write(name, values=None, pixels=None, change=None, **identity):
        pixels = pixels or f"{len(list(tmp_path.glob('*.json'))):02x}"
        data = json.loads(made(values, IDENTITY | identity, pixels).to_json())
        if change:
            change(data)
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(data))
        return path

    return write


def compared(*paths):
    return compare([read_result(path) for path in paths])


def command(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """`python -m evaluation compare` in this process: exit code, standard output and error."""
    monkeypatch.setattr(sys, "argv", ["evaluation", "compare", *map(str, arguments)])
    code = 0
    try:
        with fiducial.user_errors():
            cli.run(cli.build_parser().parse_args())
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


def test_runs_of_several_seeds_are_one(write):
    seeds = [write(str(seed), {"fid": (value, error)}, global_seed=seed) for seed, value, error in SEEDS]
    (row,) = compared(*seeds).rows
    fid = row.cells["fid"]
    assert fid.value == pytest.approx(4.0)
    assert fid.error == pytest.approx(0.7 / 3)  # sqrt(0.04 + 0.09 + 0.36) / 3
    assert (fid.low, fid.high) == pytest.approx((4 - 1.959964 * 0.7 / 3, 4 + 1.959964 * 0.7 / 3))
    assert fid.seen == pytest.approx(1.0)
    assert fid.promised == pytest.approx((0.49 / 3) ** 0.5)
    assert row.seeds == (0, 1, 2)
    table = comparison_table(compared(*seeds))
    assert "all runs (seeds 0, 1, 2)" in table
    assert "FID      1.00      0.40" in table


SEEDS = [(0, 3.0, 0.2), (1, 4.0, 0.3), (2, 5.0, 0.6)]


def test_pools_have_only_what_all_have_and_an_error_if_all_have_one(write):
    below = {"kid": (0.001, 0.01), "fid-infinity": (-0.05, 0.01)}
    first = write("a", {"fid": (3.0, 0.1), "is": (5.0, 0.1), **below}, global_seed=0)
    second = write("b", {"fid": (3.0, None), **below}, global_seed=1)
    (row,) = compared(first, second).rows
    assert list(row.cells) == ["fid", "kid", "fid-infinity"]
    fid = row.cells["fid"]
    assert (fid.value, fid.error, fid.low, fid.promised, fid.seen) == (3.0, None, None, None, 0.0)
    assert row.cells["kid"].low < 0  # KID is unbiased, and can be
    assert row.cells["fid-infinity"].low < -0.05 < row.cells["fid-infinity"].high < 0
    third, fourth = (write(f"c{n}", {"precision": (0.99, 0.02), "fid": (0.01, 0.1)}, global_seed=n) for n in (3, 4))
    (row,) = compared(third, fourth).rows
    assert row.cells["precision"].high == 1
    assert row.cells["fid"].low == 0


def test_runs_of_several_seeds_without_a_common_metric_are_one_sentence(write, monkeypatch, capsys):
    one, other = (write(name, {name: (3.0, 0.1)}, global_seed=seed) for seed, name in enumerate(("fid", "is")))
    code, out, err = command(monkeypatch, capsys, one, other)
    assert (code, out) == (2, "")
    assert "have no metric in common" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [0.0, 1e-12])
def test_errors_that_bound_nothing_decide_nothing(error, write):
    found = compared(write("a", {"fid": (3.0, error)}, cfg_scale=1.0), write("b", {"fid": (4.0, error)}, cfg_scale=2.0))
    assert [(one.verdict, one.low) for one in found.differences] == [("without interval", None)]
    assert comparison_table(found)
    assert comparison_page(found)


def test_what_is_more_than_a_seed_apart_is_not_pooled(write):
    a = write("a", global_seed=0)
    b = write("b", global_seed=1, cfg_scale=1.25)
    c = write("c", global_seed=1)
    rows = compared(a, b, c).rows
    assert [(row.name, row.seeds) for row in rows] == [("cfg_scale 1.5", (0, 1)), ("cfg_scale 1.25", (1,))]
    assert rows[1].cells["precision"].low == 0.625  # one run keeps its own interval


@pytest.mark.parametrize(("gap", "verdict"), [(0.97, "undecided"), (0.99, "decided"), (-0.97, "undecided"), (-0.99, "decided")])
def test_a_difference_is_decided_if_its_interval_excludes_0(gap, verdict, write):
    """Errors of 0.3 and 0.4 are 0.5 together, and 1.96 times that is 0.98."""
    a, b = write("a", {"fid": (4.0, 0.3)}), write("b", {"fid": (4.0 + gap, 0.4)}, cfg_scale=2.0)
    (found,) = compared(a, b).differences
    assert found.verdict == verdict
    assert (found.difference, found.error, found.relative) == pytest.approx((gap, 0.5, gap / 4))
    assert (found.low, found.high) == pytest.approx((gap - 1.959964 * 0.5, gap + 1.959964 * 0.5))
    assert (found.row, found.against) == ("cfg_scale 2.0", "cfg_scale 1.5")
    assert found.note == ""


@pytest.mark.parametrize(
    ("name", "gap", "error", "noted"),
    [
        ("fid", 0.012, 0.001, True),
        ("fid", -0.012, 0.001, True),
        ("fid", 0.014, 0.001, False),
        ("fid", 0.012, 0.1, False),
        ("precision", 0.012, 0.001, False),
    ],
)
def test_a_decided_gap_of_fid_may_be_no_more_than_retraining_makes(name, gap, error, noted, write):
    a, b = write("a", {name: (1.0, error)}), write("b", {name: (1.0 + gap, error)}, cfg_scale=2.0)
    comparison = compared(a, b)
    assert ("arXiv 2606.20536" in comparison.differences[0].note) == noted
    assert ("under 1.3 %" in comparison_table(comparison)) == noted


def test_without_an_interval_nothing_is_decided(write):
    a, b = write("a", {"fid": (1.0, None)}), write("b", {"fid": (9.0, 0.1)}, cfg_scale=2.0)
    (found,) = compared(a, b).differences
    assert (found.verdict, found.low, found.error) == ("without interval", None, None)


def test_rows_are_called_by_what_differs_or_by_their_files(write):
    a, b = write("a"), write("b", cfg_scale=1.25, guidance_interval=[0.0, 0.5])
    names = [row.name for row in compared(a, b).rows]
    assert names == ["cfg_scale 1.5, guidance_interval [0.0, 1.0]", "cfg_scale 1.25, guidance_interval [0.0, 0.5]"]
    c = write("c", checkpoint_sha256="0123456789abcdef")
    d = write("d", checkpoint_sha256="fedcba9876543210")
    assert [row.name for row in compared(c, d).rows] == ["checkpoint_sha256 01234567", "checkpoint_sha256 fedcba98"]
    e = write("e", cfg_scale=1.25, model="x", sampler="y", eta=1.0)
    assert [row.name for row in compared(a, e).rows] == ["a", "e"]  # more than a name holds
    unknown = write("unknown", change=lambda data: data.pop("run"))
    assert [row.name for row in compared(a, unknown).rows] == ["a", "unknown"]
    assert [row.name for row in compared(a, b, unknown).rows] == [*names, "unknown"]


def put(value, *where):
    """An edit of a result: this value at that place."""

    def change(data):
        for field in where[:-1]:
            data = data[field]
        data[where[-1]] = value

    return change


APART = [
    (put("dinov2", "extractor", "name"), "extractor is inception in the one and dinov2 in the other"),
    (put("99" * 32, "extractor", "weights_sha256"), "weights SHA-256 is cccccccc in the one and 99999999 in the other"),
    (put("99" * 32, "reference", "sha256"), "reference SHA-256 is bbbbbbbb in the one and 99999999 in the other"),
    (put(None, "reference"), "reference SHA-256 is bbbbbbbb in the one and none in the other"),
    (put("clean", "settings", "protocol"), "protocol is adm in the one and clean in the other"),
    (put(50_000, "samples", "count"), "N is 1000 in the one and 50000 in the other"),
    (put([64, 96], "samples", "image_size"), "image size is 64 x 64 in the one and 96 x 64 in the other"),
    (put("ee" * 32, "training", "pixels_sha256"), "training images SHA-256 is dddddddd in the one and eeeeeeee in the other"),
    (put("float16", "settings", "precision_recall_distances"), "precision_recall_distances is float32 in the one and float16"),
    (put("bfloat16", "settings", "dtype"), "dtype is float32 in the one and bfloat16 in the other"),
    (put(50, "settings", "kid_subset_size"), "kid_subset_size is 1000 in the one and 50 in the other"),
]


@pytest.mark.parametrize(("change", "said"), APART, ids=[said.split(" is ")[0] for _, said in APART])
def test_what_cannot_be_compared_is_refused_by_name(change, said, write, monkeypatch, capsys):
    a, b = write("a"), write("b", change=change, cfg_scale=2.0)
    code, out, err = command(monkeypatch, capsys, a, b)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {a} and {b} cannot be compared: {said}")
    assert err.count("\n") == 1


def test_training_images_that_one_lacks_cost_its_authpct_alone(write):
    a, b = write("a"), write("b", {"fid": (2.0, 0.1)}, change=lambda data: data.pop("training"), cfg_scale=2.0)
    b.write_text(b.read_text())
    comparison = compared(a, b)
    assert [one.key for one in comparison.differences] == ["fid"]
    assert "AuthPct" in comparison_table(comparison)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_training_images_that_two_have_must_be_the_same(order, write):
    """Also where the first has none."""
    without = write("a", change=lambda data: data.pop("training"), cfg_scale=2.0)
    first, same = (write(f"b{seed}", global_seed=seed) for seed in (0, 1))
    other = write("c", change=put("ee" * 32, "training", "pixels_sha256"), global_seed=1)
    with pytest.raises(UserError, match="training images SHA-256"):
        compared(*([without, first, other][place] for place in order))
    comparison = compared(*([without, first, same][place] for place in order))
    assert comparison.basis["training images SHA-256"] == "dd" * 32


STRANGE = [
    (put(float("nan"), "metrics", "fid", "value"), "its metrics.fid.value is nan"),
    (put("2", "metrics", "fid", "value"), "its metrics.fid.value is '2'"),
    (put(True, "metrics", "fid", "value"), "its metrics.fid.value is True"),
    (put(10**400, "metrics", "fid", "value"), "its metrics.fid.value is 1"),
    (put(-1.0, "metrics", "fid", "error"), "its metrics.fid.error is -1.0"),
    (put("x", "metrics", "fid", "low"), "its metrics.fid.low is 'x'"),
    (put({}, "metrics", "fid"), "it has no metrics.fid.name"),
    (put("vid", "metrics", "fid", "name"), "its metrics.fid.name is 'vid'"),
    (put("", "metrics", "fid", "label"), "its metrics.fid.label is ''"),
    (put("\ud800", "metrics", "fid", "label"), "its metrics.fid.label is '\\ud800'"),
    (put({}, "metrics"), "it has no metrics"),
    (put([], "metrics"), "its metrics is a list"),
    (put(7, "samples"), "its samples is 7"),
    (put("many", "samples", "count"), "its samples.count is 'many'"),
    (put([64], "samples", "image_size"), "its samples.image_size is a list"),
    (put(["a", "b"], "samples", "image_size"), "its samples.image_size is a list"),
    (put("a\nb" * 100, "samples", "pixels_sha256"), "its samples.pixels_sha256 is 'a\\nb"),
    (put([], "run"), "its run is a list"),
    (put({"a": {}}, "run", "identity"), "its run.identity.a is a dict"),
    (put({"a": [[[]]]}, "run", "identity"), "its run.identity.a is a list"),
    (put({"a": "x" * 300}, "run", "identity"), "its run.identity.a is 'xxx"),
    (put("fiducial-result-2", "format"), "is of the format fiducial-result-2, and fiducial-result-3 is read here: evaluate the"),
    (put("fiducial-run-2", "format"), "is no result of calc: its format is not fiducial-result-3"),
    (put(3, "format"), "is no result of calc: its format is not fiducial-result-3"),
]


@pytest.mark.parametrize(("change", "said"), STRANGE, ids=[said[:40] for _, said in STRANGE])
def test_a_strangers_result_is_one_sentence(change, said, write, monkeypatch, capsys):
    a, b = write("a"), write("b", change=change)
    code, out, err = command(monkeypatch, capsys, a, b)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {b} is ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[]", b"7", b"null", b"[" * 100_000, b'{"format": null}'])
def test_a_file_of_something_else_is_one_sentence(content, write, tmp_path, monkeypatch, capsys):
    (tmp_path / "other.json").write_bytes(content)
    code, _, err = command(monkeypatch, capsys, write("a"), tmp_path / "other.json")
    assert code == 2
    assert err.startswith(f"error: {tmp_path / 'other.json'} is n")
    assert err.count("\n") == 1


def test_one_result_twice_is_refused(write, tmp_path, monkeypatch, capsys):
    a, b = write("a", pixels="77"), write("b", pixels="77", cfg_scale=2.0)
    c = write("c", pixels="78")
    for others, said in (
        ((a, a), "are results of the same images: name each run once"),
        ((a, b), "are results of the same images: name each run once"),
        ((a, c), "are of the same configuration and seed: name each run once"),
        ((a,), f"{a}: compare needs at least two results"),
        ((a, tmp_path / "absent"), "absent: no such file or folder"),
        ((a, tmp_path / "absent.json"), "absent.json: no such file or folder"),
        ((a, c, "--json", c), "c.json is named twice"),
    ):
        code, out, err = command(monkeypatch, capsys, *others)
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1


def test_a_run_is_found_by_its_json_its_npz_or_its_folder(write, tmp_path, monkeypatch):
    path = write("run")
    assert find_result(tmp_path / "run.json") == path
    assert find_result(tmp_path / "run") == path  # though the samples are gone
    (tmp_path / "run").mkdir()
    (tmp_path / "run.npz").touch()
    assert find_result(tmp_path / "run.npz") == path
    assert find_result(tmp_path / "run") == path
    monkeypatch.chdir(tmp_path / "run")
    assert find_result(type(path)(".")) == path
    (tmp_path / "new.npz").touch()
    with pytest.raises(fiducial.UserError, match=r"new\.npz has no result beside it: python -m evaluation calc"):
        find_result(tmp_path / "new.npz")


def test_the_files_have_what_the_table_has(write, tmp_path):
    """Through the command itself, at the width of a phone's terminal, with a name that is not harmless."""
    a, b = write("a", model=NASTY), write("b", model="other", global_seed=1)
    c = write("c", model="other", global_seed=2)
    files = ["--json", tmp_path / "out.json", "--html", tmp_path / "out.html"]
    done = run_command("-m", "evaluation", "compare", a, b, c, *files, COLUMNS="60")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["format"] == "fiducial-comparison-1"
    assert written["rows"][1]["cells"]["fid"]["error"] == pytest.approx(0.25 / 2**0.5)
    assert written["differences"][0]["verdict"] == "undecided"
    assert written["basis"]["N"] == 1000
    text = (tmp_path / "out.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert not any(tag in ("link", "img", "iframe") for tag in page.tags)
    assert page.tags.count("svg") == 7  # a metric each
    rows = {row[0]: row for row in page.tables["runs"]}
    assert rows[f"model {NASTY}"][1] == "2.502.00 to 3.00"  # the interval is small, below
    assert "model other (seeds 1, 2)" in rows
    assert rows["FID"][1:3] == ["+0.00", "-0.60 to 0.60"]
    for found in (done.stdout, text):
        assert "undecided" in found
    assert not any("precision" in line and "coverage" in line for line in done.stdout.splitlines())  # too wide for one table


def test_the_odd_one_is_left_out_also_where_it_comes_first(write, tmp_path, monkeypatch, capsys):
    write("sweep-0", change=put(50_000, "samples", "count"))
    write("sweep-1", cfg_scale=1.0)
    write("sweep-2", cfg_scale=2.0)
    code, out, err = command(monkeypatch, capsys, *sorted(tmp_path.glob("sweep-*.json")), "--json", tmp_path / "all.json")
    assert (code, err) == (0, "")
    written = json.loads((tmp_path / "all.json").read_text())
    assert [text.partition(",")[0] for text in written["left_out"]] == [str(tmp_path / "sweep-0.json")]
    assert "cfg_scale 2.0 less cfg_scale 1.0" in out


def test_a_glob_is_taken_as_the_runs_that_it_can_be(write, tmp_path, monkeypatch, capsys):
    """As a shell expands `sweep-*`: each run by its folder, npz, result and page, beside what is none of one."""
    for number, scale in enumerate((1.0, 2.0)):
        write(f"sweep-{number}", cfg_scale=scale)
        (tmp_path / f"sweep-{number}").mkdir()
        (tmp_path / f"sweep-{number}.npz").touch()
        (tmp_path / f"sweep-{number}.html").touch()
    (tmp_path / "sweep-2").mkdir()
    (tmp_path / "sweep-2.npz").touch()
    write("sweep-3", change=put(50_000, "samples", "count"))
    write("sweep-4", change=put("fiducial-comparison-1", "format"))
    (tmp_path / "sweep-6.json").symlink_to("nowhere")
    for name in ("sweep-5.html", "sweep-77.log"):
        (tmp_path / name).touch()
    code, out, err = command(monkeypatch, capsys, *sorted(tmp_path.glob("sweep-*")), "--json", tmp_path / "all.json")
    assert (code, err) == (0, "")
    assert "cfg_scale 2.0 less cfg_scale 1.0" in out
    written = json.loads((tmp_path / "all.json").read_text())
    assert [len(row["files"]) for row in written["rows"]] == [1, 1]
    left = [
        (2, "sweep-2 has no result beside it: python -m evaluation calc"),
        (5, "sweep-5.html is no result of calc, and neither the npz nor the folder of a run"),
        (6, "sweep-6.json: no such file or folder"),
        (77, "sweep-77.log is no result of calc, and neither"),
        (3, "sweep-3.json, for "),
        (4, "sweep-4.json is no result of calc: its format is not"),
    ]
    assert len(written["left_out"]) == len(left)
    for text, (number, said) in zip(written["left_out"], left, strict=True):
        assert text.startswith(f"{tmp_path}/sweep-{number}")
        assert said in text
        assert f"left out: {text}" in out
    assert "N is 1000 in the one and 50000 in the other" in written["left_out"][4]


def test_fewer_than_two_that_fit_are_one_sentence_with_the_reasons(write, tmp_path, monkeypatch, capsys):
    a, b = write("a"), write("b", change=put("clean", "settings", "protocol"))
    (tmp_path / "c.npz").touch()
    code, out, err = command(monkeypatch, capsys, a, b, tmp_path / "c.npz")
    assert (code, out) == (2, "")
    assert "error: compare needs at least two results, and 1 can be used: " in err
    assert "c.npz has no result beside it" in err
    assert "protocol is adm in the one and clean in the other" in err
    assert err.count("\n") == 1


def test_json_on_standard_output_is_alone_there(write, tmp_path):
    a, b = write("a"), write("b", cfg_scale=2.0)
    done = run_command("-m", "evaluation", "compare", a, b, "--json", "-", "--html", tmp_path / "x.html")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["format"] == "fiducial-comparison-1"
    assert found["fiducial"]["command"].endswith(f"compare {a} {b} --json - --html {tmp_path / 'x.html'}")
    assert "cfg_scale 2.0 less cfg_scale 1.5" in done.stderr
    assert f"{tmp_path / 'x.html'}\n" in done.stderr
    assert found["fiducial"]["version"] in (tmp_path / "x.html").read_text()
