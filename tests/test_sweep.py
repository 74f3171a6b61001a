"""A sweep: what it is of, what it drops and why, and that it goes on after every way to end."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, run_command
from made_results import IDENTITY, made

from fiducial import UserError
from fiducial.evaluation.report import write
from fiducial.studies.sweep import build_parser, go_on, specification
from fiducial.studies.sweeps import drawing, page
from fiducial.studies.sweeps.deciding import LEVEL, decide, quantile_of
from fiducial.studies.sweeps.plots import plots_of
from fiducial.studies.sweeps.specification import run_of
from fiducial.studies.sweeps.state import Sweep, opened

GRID = ["--over", "cfg-scale=1,1.5,4", "--over", "sampler=ddim,ddpm", "--seeds", "0,1", "--ref", "digits", "--preset", "digits"]
SIZES = ["--start", "100", "--growth", "3", "--num-fid-samples", "600"]
FIDS = {"1": 2.0, "1.5": 1.0, "4": 5.0}  # by cfg-scale; ddpm is a little worse


def asked(folder, *more):
    args, options = build_parser().parse_known_args(["--out", str(folder), *GRID, *SIZES, *more])
    return args, specification(args, options)


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path, asked(tmp_path)[1])


def fake_run(sweep, place, errors=0.2):
    """The result of a run, as `sample` would leave it: moves that configurations of a seed share, and some of their own."""
    one, seed = sweep.jobs[place]
    fid = FIDS[one.values["cfg-scale"]] + 0.01 * (one.values["sampler"] == "ddpm")
    common, own = (np.random.default_rng([seed, which]).normal(size=sweep.count) for which in (0, 1 + place))
    moves = errors * (common + 0.1 * own) / np.sqrt(sweep.count)
    values = {"fid": (fid, float(np.linalg.norm(moves))), "is": (7.0, 0.1), "precision": (0.8, 0.02), "recall": (0.6, 0.02)}
    identity = {**IDENTITY, "labels": "random", "num_classes": 10, "noise": "philox", "global_seed": seed, **one.values}
    pixels = f"{place:02x}"
    samples = {"path": "x.npz", "count": sweep.count, "image_size": [64, 64], "pixels_sha256": pixels * 32}
    result = made(values, identity, pixels, samples=samples)
    sweep.runs.mkdir(exist_ok=True)
    write(replace(result, moves={"fid": moves}), sweep.runs / f"{run_of(one, seed)}.json", None)


@pytest.fixture
def drawn(monkeypatch):
    """Runs that were drawn, in the place of drawing: (name, images)."""
    found = []

    def draw(sweep, places, _):
        for place in places:
            found.append((run_of(*sweep.jobs[place]), sweep.count))
            fake_run(sweep, place)
            sweep.keep(place)

    monkeypatch.setattr("fiducial.studies.sweep.draw", draw)
    return found


def test_what_is_decided_to_be_worse_is_dropped_and_ties_stay(sweep, drawn):
    args, _ = asked(sweep.folder)
    go_on(sweep, args)
    names = {key: one.name for key, one in sweep.configurations.items()}
    first, second, third = sweep.rounds
    assert [one["count"] for one in sweep.rounds] == [100, 300, 600]
    assert {names[key] for key in first["dropped"]} == {
        f"cfg-scale {scale}, sampler {name}" for scale in ("1", "4") for name in ("ddim", "ddpm")
    }
    assert not second["dropped"]
    assert not third["dropped"]
    assert [names[key] for key in third["values"]] == ["cfg-scale 1.5, sampler ddim", "cfg-scale 1.5, sampler ddpm"]
    assert len(drawn) == 12 + 4 + 4
    assert sweep.drawn() == 8 * 100 + 4 * 600
    assert "(not told apart" not in page.answer(sweep)
    assert "not told apart from cfg-scale 1.5, sampler ddpm" in page.answer(sweep)


def test_only_pairs_make_a_small_gap_decided(sweep):
    """A gap of one standard error of either run; half of their moves' chance is common, or nearly all of it."""
    for place in range(len(sweep.jobs)):
        fake_run(sweep, place, errors=0.5)
        sweep.keep(place)
    pools = sweep.pools(100, list(sweep.configurations))
    best, other = next(iter(pools)), list(pools)[2]
    paired = decide(pools, "fid", sweep.quantile)
    assert all(gap.paired for gap in paired.gaps.values())
    alone = {key: [replace(one, influences=None) for one in pool] for key, pool in pools.items()}
    apart = decide(alone, "fid", sweep.quantile)
    assert not any(gap.paired for gap in apart.gaps.values())
    assert apart.best == paired.best == other
    assert apart.gaps[best].error > 5 * paired.gaps[best].error
    assert (paired.gaps[best].worse, apart.gaps[best].worse) == (True, False)


def test_the_level_is_shared_by_all_comparisons():
    """Of equal configurations with independent errors, some true best is dropped no more often than promised."""
    assert quantile_of(2, 1) == pytest.approx(1.644854)  # one-sided
    assert quantile_of(12, 3) == pytest.approx(2.9637, abs=1e-3)
    random, configurations, rounds, lost = np.random.default_rng(0), 12, 3, 0
    for _ in range(4000):
        gone = False
        for _ in range(rounds):
            values = random.normal(size=configurations)
            gone |= values[0] - values.min() > quantile_of(configurations, rounds) * 2**0.5
        lost += gone
    assert 0 < lost / 4000 <= LEVEL


def test_without_an_error_nothing_is_decided(sweep):
    pools = {}
    for place, (one, seed) in enumerate(sweep.jobs):
        fake_run(sweep, place)
        sweep.keep(place)
        known = sweep.pools(100, [one.key])[one.key] if seed == 1 else None
        if known:
            without = [replace(k, numbers={"fid": replace(k.numbers["fid"], error=None)}, influences=None) for k in known]
            pools[one.key] = without
    found = decide(pools, "fid", sweep.quantile)
    assert not found.dropped
    assert all(gap.low is None for gap in found.gaps.values())


def test_a_sweep_that_is_killed_anywhere_goes_on_to_the_same(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr("fiducial.studies.sweep.write_report", lambda *_: None)
    monkeypatch.setattr("fiducial.studies.sweep.round_table", lambda _: [])
    args, spec = asked(tmp_path / "whole")
    args.out.mkdir()
    go_on(opened(args.out, spec), args)
    whole, once = json.loads((args.out / "sweep.json").read_text())["rounds"], list(drawn)
    assert len(once) == 20
    for kill in (7, 12, 13):
        drawn.clear()
        args, spec = asked(tmp_path / f"killed-{kill}")
        args.out.mkdir()
        opened(args.out, spec).write()
        for _ in range(40):
            sweep = opened(args.out, spec)
            before = len(drawn)
            if sweep.is_done:
                break
            places = sweep.pending()
            if places and before < kill <= before + len(places):
                for place in places[: kill - before]:
                    drawn.append((run_of(*sweep.jobs[place]), sweep.count))
                    fake_run(sweep, place)
                    sweep.keep(place)
                continue  # as a process that ends here
            go_on(sweep, args)
        assert json.loads((args.out / "sweep.json").read_text())["rounds"] == whole
        assert drawn == once


def test_another_specification_is_refused_by_what_differs(tmp_path):
    _, spec = asked(tmp_path)
    Sweep(tmp_path, spec).write()
    assert opened(tmp_path, spec).spec == spec
    with pytest.raises(UserError, match=r"whose --seeds is \[0, 1\] and not \[0, 2\]"):
        opened(tmp_path, asked(tmp_path, "--seeds", "0,2")[1])
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match="is no sweep of Fiducial's"):
        opened(tmp_path, spec)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--over", "cfg-scale=2,3"], "--cfg-scale is given twice"),
        (["--over", "eta=0,0"], "0 is there twice"),
        (["--over", "cfg=1,2"], "--cfg is no option of fiducial sample"),
        (["--over", "run-name=a,b"], "cannot be swept; see --out"),
        (["--over", "num-sampling-steps=5,x"], "num-sampling-steps x: --num-sampling-steps x"),
        (["--over", "labels"], "must be NAME=VALUE"),
        (["--over", "cfg-channels=3,3.5"], "'3.5' is not a whole number"),
        (["--over", "guidance-interval=0,1;0,1.0"], "are the same configuration"),
        (["--sampler", "ddim"], "--sampler: is given for all runs and by --over"),
        (["--global-seed", "1"], "see --seeds"),
        (["--nonsense", "1"], "--nonsense"),
        (["--seeds", "0,0"], "one is there twice"),
        (["--start", "1000"], "must be 2 to --num-fid-samples"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_drawn(more, said, tmp_path):
    with pytest.raises(UserError, match=None) as error:
        asked(tmp_path, *more)
    assert said in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("drawn")
def test_what_is_found_is_written(sweep, tmp_path):
    args, _ = asked(sweep.folder, "--csv", str(tmp_path / "a.csv"), "--latex", str(tmp_path / "a.tex"))
    go_on(sweep, args)
    lines = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(lines) == (6 + 2 + 2) * 4
    assert {line["state"] for line in lines} == {"best", "in", "dropped in round 1"}
    text = (tmp_path / "sweep.html").read_text()
    assert "3,200 images were drawn, 44 % of the 7,200 of the full grid" in text
    assert text.count("dropped in round 1") == 4
    assert {f"round-{n}-{name}" for n in (1, 2, 3) for name in ("fid", "is-fid", "recall-precision")} == set(plots_of(sweep))
    assert r"\textbf{1.0" in (tmp_path / "a.tex").read_text()


@pytest.mark.long
def test_a_run_that_fails_stops_the_sweep_and_the_same_command_goes_on(tmp_path, tiny_checkpoint):
    """With real runs, all in one process: the first command stops at a checkpoint that is not there."""
    late = tmp_path / "late.safetensors"
    options = ["--model", "DiT-XS/8", "--no-probe", "--num-sampling-steps", "2", "--precision", "fp32", "--no-compile"]
    grid = ["--over", f"ckpt={tiny_checkpoint},{late}", "--start", "70", "--num-fid-samples", "90", "--ref", "digits", "--no-png"]
    command = ["-m", "fiducial", "sweep", "--out", tmp_path / "out", *grid, "--preset", "digits", *options, "--check", "off"]
    failed = run_command(*command)
    assert failed.returncode == 2
    assert "the same command continues the sweep" in failed.stderr
    assert "late.safetensors" in failed.stderr
    kept = sorted((tmp_path / "out" / "rounds" / "70").glob("*.json"))
    assert len(kept) == 1
    before = kept[0].stat().st_mtime_ns
    late.write_bytes(tiny_checkpoint.read_bytes() + b"")
    done = run_command(*command)
    assert done.returncode == 0, done.stderr
    assert kept[0].stat().st_mtime_ns == before
    assert [one["count"] for one in json.loads((tmp_path / "out" / "sweep.json").read_text())["rounds"]] == [70, 90]
    assert (tmp_path / "out" / "sweep.html").exists()


def test_by_slurm_each_round_is_an_array_and_a_job_that_decides(tmp_path, sweep, drawn, monkeypatch):
    """A stand-in for sbatch notes what it is given; the scripts call this command again."""
    noted = tmp_path / "noted"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(f'#!/bin/sh\necho "$@" >> {noted}\necho "7;cluster"\n')
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    args, _ = asked(sweep.folder, "--slurm=--gpus-per-node=8", "--slurm-most", "4")
    fake_run(sweep, 0)
    sweep.keep(0)
    go_on(sweep, args)
    array, decides = noted.read_text().splitlines()
    assert "--gpus-per-node=8 --array=1-11%4" in array
    assert "--dependency=afterany:7" in decides
    assert "sweep --out" in (sweep.folder / "jobs" / "draw-100.sh").read_text()
    assert subprocess.run(["bash", "-n", sweep.folder / "jobs" / "draw-100.sh"]).returncode == 0
    assert sys.executable in (sweep.folder / "jobs" / "decide-100.sh").read_text()
    args.decide = True
    with pytest.raises(UserError, match="11 of 12 runs have no result"):
        go_on(sweep, args)
    for place in sweep.pending():
        fake_run(sweep, place)
        sweep.keep(place)
    go_on(sweep, args)
    assert "--array=0-3%4" in noted.read_text().splitlines()[2]
    assert len(sweep.rounds) == 1
    assert not drawn


def test_the_help_is_quick():
    code = "import sys; import fiducial.studies.sweep; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert drawing.processes(3) == 3
