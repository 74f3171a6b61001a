"""`prune`: what it chooses, what it never takes, and that nobody who uses an entry loses it."""

import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from test_evaluation_cli import evaluate

import fiducial
from fiducial import cache
from fiducial.evaluation.data.published import PUBLISHED, kept_at
from fiducial.evaluation.evaluate import Evaluation
from fiducial.evaluation.features import WEIGHTS, spec_of
from fiducial.evaluation.settings import Settings
from fiducial.models.checkpoints.catalogue import PLACES
from fiducial.models.checkpoints.places import Page, Url
from fiducial.sampling.commands import doctor

DAY = 86400


def entry(folder, number, size, age):
    """Features of so many bytes that were used so many days ago."""
    path = folder / f"{number:032x}"
    path.mkdir(parents=True)
    (path / "features.f32").write_bytes(b"\1" * size)
    (path / "about.json").write_text('{"format": "fiducial-features-3"}')
    aged(path / "about.json", age)
    aged(path, age)
    return path


def aged(path, days):
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


@pytest.fixture
def filled(tmp_path):
    """A cache with something of each kind, and with what is none of ours."""
    for number, age in enumerate((1, 20, 40, 60)):
        entry(tmp_path, number, 100_000, age)
    kernels = tmp_path / f"compiled-{'0' * 16}"
    kernels.mkdir()
    aged(kernels, 50)
    for name in ("checkpoints/DiT-XL-2-256x256.pt", "checkpoints/0400000.pt", "checkpoints/DiT-XL-2-512x512.pt.partial"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\1" * 50_000)
        aged(tmp_path / name, 90)
    (tmp_path / ("f" * 32)).mkdir()  # somebody's own
    (tmp_path / f".{'0' * 32}.0-1-2-aaaaaaaa.tmp").mkdir()
    (tmp_path / ("e" * 32)).symlink_to(tmp_path)
    return tmp_path


def names(folder):
    return {str(path.relative_to(folder)) for path in (*folder.iterdir(), *(folder / "checkpoints").iterdir())}


KEYS = [f"{number:032x}" for number in range(4)]
CHOICES = [
    (("--older-than", "30d"), {KEYS[2], KEYS[3], f"compiled-{'0' * 16}"}),
    (("--older-than", "55d"), {KEYS[3]}),
    (("--keep", "250kB"), {KEYS[3], f"compiled-{'0' * 16}", KEYS[2]}),
    (("--keep", "250kB", "--older-than", "10d"), {KEYS[1], KEYS[2], KEYS[3], f"compiled-{'0' * 16}"}),
    (("--keep", "0"), {*KEYS, f"compiled-{'0' * 16}"}),
    (("--keep", "0", "--published"), {*KEYS, f"compiled-{'0' * 16}", "checkpoints/DiT-XL-2-256x256.pt"}),
    (("--older-than", "200w", "--published"), set()),
    ((), set()),
]


@pytest.mark.parametrize(("options", "gone"), CHOICES, ids=[" ".join(options) for options, _ in CHOICES])
def test_what_is_old_or_too_much_goes_and_nothing_else(options, gone, filled, monkeypatch, capsys):
    before = names(filled)
    code, out, err = evaluate(monkeypatch, capsys, "prune", "--cache-dir", filled, *options, "--dry-run")
    assert (code, err) == (0, "")
    assert names(filled) == before
    assert {str(filled / name) for name in gone} == set(re.findall(r"^(\S+): .* would be removed$", out, re.MULTILINE))
    code, out, err = evaluate(monkeypatch, capsys, "prune", "--cache-dir", filled, *options)
    assert (code, err) == (0, "")
    assert names(filled) == before - gone
    assert re.search(r"^features: 0\.\d MB in 4, which is computed anew when it is needed$", out, re.MULTILINE)


@pytest.mark.parametrize("options", [("--older-than", "30"), ("--older-than", "-1d"), ("--keep", "much"), ("--keep", "nan")])
def test_what_is_no_time_or_size_is_one_sentence(options, filled, monkeypatch, capsys):
    before = names(filled)
    code, out, err = evaluate(monkeypatch, capsys, "prune", "--cache-dir", filled, *options)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: argument {options[0]}: ")
    assert names(filled) == before
    code, _, err = evaluate(monkeypatch, capsys, "prune", "--cache-dir", filled / "absent", "--keep", "0")
    assert (code, err) == (2, f"error: --cache-dir {filled}/absent: no such folder, so there is nothing to remove\n")


HOLDER = """
import sys
from pathlib import Path
from fiducial import cache
{how}
print("held", flush=True)
sys.stdin.read()
"""
WAYS = {
    "features": ("cache.hold(Path({0!r}) / 'about.json')", KEYS[3]),
    "kernels": ("cache.hold_kernels(Path({0!r}))", f"compiled-{'0' * 16}"),
    "published": ("cache.hold(Path({0!r}), used=False)", "checkpoints/DiT-XL-2-256x256.pt"),
}


@pytest.mark.parametrize("kind", WAYS)
def test_what_a_process_uses_stays_until_it_ends(kind, filled, monkeypatch, capsys):
    how, name = WAYS[kind]
    code = HOLDER.format(how=how.format(str(filled / name)))
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        prune = "prune", "--cache-dir", filled, "--keep", "0", "--published"
        _, out, _ = evaluate(monkeypatch, capsys, *prune)
        assert re.search(rf"^{filled / name}: .*, stays \(a process has it in use\)$", out, re.MULTILINE)
        assert name in names(filled)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        holder.stdin.close()
    evaluate(monkeypatch, capsys, *prune)
    assert name not in names(filled)


def test_an_evaluation_holds_what_it_made_or_found(tmp_path, alone):
    """And, when it finds it, notes the time; a cache that it removes in the end holds no file open."""
    images = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=images)
    before = len(cache._held)

    def evaluated(**settings):
        prepared = Evaluation.prepare("digits", alone, Settings(cache_dir=tmp_path / "cache", metrics=("fid",), **settings))
        return prepared.evaluate(tmp_path / "samples.npz").metrics["fid-digits"].value

    first = evaluated(keep_features=False)
    assert len(cache._held) == before
    assert evaluated() == first
    assert len(cache._held) == before + 1
    (found,) = cache.entries(tmp_path / "cache")
    assert cache.remove(found, really=False) == "a process has it in use"
    aged(found.mark, 90)
    assert evaluated() == first
    assert len(cache._held) == before + 1
    (found,) = cache.entries(tmp_path / "cache")
    assert time.time() - found.used < DAY
    cache.release(tmp_path / "cache")
    assert cache.chosen([found], 0.0, None) == [found]
    assert cache.remove(found) is None
    assert evaluated() == first


def test_whoever_comes_while_an_entry_goes_finds_none(filled):
    (oldest,) = [found for found in cache.entries(filled) if found.path.name == KEYS[3]]
    with open(oldest.mark) as file:
        cache.fcntl.flock(file, cache.fcntl.LOCK_EX)
        assert not cache.hold(oldest.mark)
    assert cache.hold(oldest.mark)
    cache.release(filled)
    assert not cache.hold(filled / "absent" / "about.json")


def test_downloads_are_told_from_a_persons_own_files(tmp_path):
    kept = [place.path(tmp_path) for place in PLACES.values() if isinstance(place, Url)]
    kept += [weights.kept_at(tmp_path) for weights in (*WEIGHTS.values(), spec_of("timm:test_vit").weights)]
    kept += [kept_at(name, tmp_path) for name in PUBLISHED]
    assert all(cache.DOWNLOADED.fullmatch(path.name) for path in kept)
    by_hand = [place.path(tmp_path) for place in PLACES.values() if isinstance(place, Page)]  # nothing downloads them anew
    assert len(kept) > 2
    assert not any(cache.DOWNLOADED.fullmatch(name) for name in ("0400000.pt", "last.pt", *(path.name for path in by_hand)))


def test_doctor_gives_the_sizes(filled):
    told, of_the_user = map(str, doctor.cached(filled))
    said = rf"ok +cache +{filled} holds \d+ kB of features, \S+ \S+ of compiled kernels, \d+\.?\d* kB of published files; "
    assert re.match(said + rf"python -m evaluation prune --cache-dir {filled} --older-than 30d", told)
    assert f"{fiducial.default_cache()} holds " in of_the_user
