"""References of other repositories: JiT's and iMF's statistics, and EDM2's pickles, of which nothing runs."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import features

import fiducial
from fiducial import UserError
from fiducial.evaluation.data import pickled
from fiducial.evaluation.data.published import IMAGENET, PUBLISHED, kept_at
from fiducial.evaluation.data.references import find_reference, holds_statistics, open_reference
from fiducial.evaluation.fit import check_protocol, choose_extractor
from fiducial.evaluation.settings import Settings

NEW = {name: one for name, one in PUBLISHED.items() if not name.startswith("adm-")}


def statistics(dimension: int, seed: int = 0) -> dict[str, np.ndarray]:
    rows = features(3 * dimension, seed, dimension).astype(np.float64)
    return {"mu": rows.mean(0), "sigma": np.cov(rows, rowvar=False)}


def edm2(folder: Path, protocol: int = pickle.DEFAULT_PROTOCOL, **changes: object) -> Path:
    """A file as EDM2's `calculate_metrics.py ref` writes it, of few dimensions."""
    path = folder / "img512.pkl"
    content = {"fid": statistics(16), "fd_dinov2": statistics(12, seed=1)} | changes
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    ("extractor", "called", "dimension"), [(None, "fid", 16), ("inception", "fid", 16), ("dinov2", "fd_dinov2", 12)]
)
def test_edm2s_pickles_hold_a_reference_of_each_extractor(protocol, extractor, called, dimension, tmp_path):
    path = edm2(tmp_path, protocol)
    found, expected = open_reference(path, extractor=extractor), pickle.loads(path.read_bytes())[called]
    assert (found.mu.shape, found.sigma.shape) == ((dimension,), (dimension, dimension))
    assert np.array_equal(found.mu, expected["mu"])
    assert np.array_equal(found.sigma, expected["sigma"])
    assert found.provenance.extractor == (extractor or "inception")
    assert holds_statistics(path)


def test_arrays_of_every_kind_are_as_pickle_has_them(tmp_path):
    """Big-endian, by columns, of other numbers, empty, and numbers of numpy's beside them."""
    random = np.random.default_rng(0)
    arrays = {
        "columns": np.asfortranarray(random.normal(size=(3, 4))),
        "swapped": random.normal(size=5).astype(">f4"),
        "bytes": random.integers(0, 255, (2, 2), dtype=np.uint8),
        "empty": np.zeros((0, 3), np.int64),
    }
    content = {"arrays": arrays, "count": np.int64(7), "mean": np.float32(0.5), "name": "x", "n": 3, "none": None}
    for protocol in (3, 4, 5):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
        found = pickled.read(tmp_path / "x.pkl")
        for name, array in arrays.items():
            assert np.array_equal(found["arrays"][name], array), name
            assert found["arrays"][name].dtype == array.dtype
        assert (found["count"], found["mean"], found["name"], found["n"], found["none"]) == (7, 0.5, "x", 3, None)


class Makes:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (str(Makes.folder),)


class Runs:
    def __reduce__(self):
        return eval, (f"__import__('os').mkdir('{Makes.folder}')",)


HOSTILE = {
    "a call": lambda: {"fid": Makes()},
    "eval": lambda: {"fid": statistics(4), "more": Runs()},
    "a call as a shape": lambda: {"fid": {"mu": Makes(), "sigma": np.eye(2)}},
    "in a list": lambda: [Makes()],
    "objects in an array": lambda: {"fid": {"mu": np.array([Makes()], dtype=object), "sigma": np.eye(1)}},
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_does_nothing_and_is_refused(kind, protocol, tmp_path):
    Makes.folder, path = tmp_path / "ran", tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(HOSTILE[kind](), protocol))
    for read in (pickled.read, open_reference):
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path} was not unpickled: it holds ")
        assert "\n" not in str(caught.value)
        assert not Makes.folder.exists()
    pickle.loads(path.read_bytes())  # which does what it is made for elsewhere
    assert Makes.folder.exists()


def raw(shape: tuple, data: bytes) -> bytes:
    """A pickle of an array that claims a shape for these bytes."""
    array = pickle.dumps({"a": np.zeros(3)}, 4)
    assert array.count(b"K\x03\x85") == 1
    shape = b"(" + b"".join(b"\x8a\x08" + int(side).to_bytes(8, "little") for side in shape) + b"t"
    return array.replace(b"K\x03\x85", shape).replace(bytes(24), data)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (raw((1 << 40,), bytes(24)), "cannot reshape array"),
        (raw((1 << 20, 1 << 20), bytes(24)), "cannot reshape array"),
        (b"", "pickle exhausted before seeing STOP"),
        (b"\x80\x04nothing", "not a whole pickle of arrays"),
        (pickle.dumps({"a": np.zeros(8)})[:-20], "not a whole pickle of arrays"),
        (pickle.dumps(np.zeros(3)), "no pickle of arrays by their names"),
        (pickle.dumps({"a": [1, 2]}), "it holds a list where an array should be"),
        (pickle.dumps({"a": {"b": {"c": {"d": {"e": {}}}}}}), "it holds a dict where"),
        (pickle.dumps({1: np.zeros(3)}), "it holds a dict where"),
        (pickle.dumps({"a": np.array(["x"])}), "it holds an array of 'U1'"),
        (pickle.dumps({"a": np.zeros(2, np.complex128)}), "it holds an array of 'c16'"),
        (b"\x80\x04\x8a\x08" + (1 << 50).to_bytes(8, "little") + b".", "no pickle of arrays by their names"),
        (b"\x80\x02}r" + (1 << 26).to_bytes(4, "little") + b".", "it numbers what it holds beyond its own size"),
        (b"}p67108864\n.", "it numbers what it holds beyond its own size"),
        (b"\x80\x02cnumpy\ndtype\nN}U\x07numbersK\x01s\x86b.", "it would change what makes an array"),
        (b"\x80\x02cnumpy.core.multiarray\nscalar\nN}U\x0c__defaults__Ns\x86b.", "it would change what makes an array"),
        (b"\x80\x05\x96" + (1 << 50).to_bytes(8, "little") + b"x.", "not a whole pickle of arrays"),
    ],
)
def test_what_is_no_pickle_of_arrays_is_one_sentence(content, said, tmp_path):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(UserError) as caught:
        pickled.read(tmp_path / "x.pkl")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "extractor", "said"),
    [
        ({"fd_dinov2": 1}, "dinov2", "has no mu and sigma of dinov2; it has those of inception, dinov2"),
        ({}, "digits", "has no mu and sigma of digits; it has those of inception, dinov2"),
        ({"fid": {"mu": np.zeros(4), "sigma": np.eye(5)}}, None, "expected; found (4,) and (5, 5)"),
        ({"fid": {"mu": np.full(4, np.nan), "sigma": np.eye(4)}}, None, "its statistics hold NaN"),
        ({"fid": {"mu": np.zeros(4, int), "sigma": np.eye(4)}}, None, "mu is int64 and sigma float64, not real numbers"),
    ],
)
def test_a_pickle_without_such_statistics_is_one_sentence(changes, extractor, said, tmp_path):
    with pytest.raises(UserError) as caught:
        open_reference(edm2(tmp_path, **changes), extractor=extractor)
    assert said in str(caught.value)


def test_ref_mu_and_ref_sigma_are_mean_and_covariance(tmp_path):
    """As the JAX codes of MeanFlow and iMF call them."""
    own = statistics(16)
    np.savez(tmp_path / "own.npz", mu=own["mu"], sigma=own["sigma"])
    np.savez(tmp_path / "theirs.npz", ref_mu=own["mu"], ref_sigma=own["sigma"])
    one, other = (open_reference(tmp_path / f"{name}.npz") for name in ("own", "theirs"))
    assert np.array_equal(one.mu, other.mu)
    assert np.array_equal(one.sigma, other.sigma)
    assert holds_statistics(tmp_path / "theirs.npz")


@pytest.mark.parametrize("name", NEW)
def test_a_published_reference_is_found_by_name_and_says_what_it_is(name, tmp_path, alone):
    path, published = kept_at(name, tmp_path), PUBLISHED[name]
    path.parent.mkdir()
    if path.suffix == ".pkl":
        edm2(path.parent).rename(path)
    else:
        np.savez(path, **{("ref_" if name.startswith("imf") else "") + key: value for key, value in statistics(16).items()})
    found = find_reference(name, alone, tmp_path, published.image_size)
    assert (found.url, found.kind) == (published.url, published.kind)
    assert found.count_for("fid") == IMAGENET
    assert found.image_size == (published.image_size, published.image_size)
    assert found.deviations("fid", "float32") == []
    with pytest.raises(UserError, match="and the samples are of 32"):
        find_reference(name, alone, tmp_path, 32)


@pytest.mark.parametrize("name", NEW)
def test_without_a_network_the_file_and_its_address_are_named(name, tmp_path, alone, monkeypatch):
    monkeypatch.setenv(fiducial.OFFLINE, "1")
    with pytest.raises(UserError) as caught:
        find_reference(name, alone, tmp_path)
    assert str(kept_at(name, tmp_path)) in str(caught.value)
    assert PUBLISHED[name].url in str(caught.value)


def test_which_extractor_is_told_before_anything_is_fetched(tmp_path):
    settings = Settings(protocol="dino")
    assert check_protocol("edm2-imagenet-512", None, settings) == "dinov2"
    with pytest.raises(UserError, match="--ref jit_in256_stats: was made with inception, and dinov2 is wanted"):
        check_protocol("jit_in256_stats", None, settings)
    with pytest.raises(UserError, match="has 12 features, but dinov2 gives 1024"):
        choose_extractor(open_reference(edm2(tmp_path), extractor="dinov2"), "dinov2", settings)


def test_calc_reads_such_a_pickle_as_a_reference(tmp_path, monkeypatch):
    """With statistics of the digits' extractor under the flat names that a single one has: the same FID as from an npz."""
    from fiducial.evaluation import __main__ as program

    images = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=images)
    with np.load(Path(fiducial.wings.ASSETS) / "digits" / "reference.npz") as arrays:
        content = {name: arrays[name] for name in ("mu", "sigma")}
    (tmp_path / "ref.pkl").write_bytes(pickle.dumps(content))
    np.savez(tmp_path / "ref.npz", **content)
    values = []
    for ref in ("ref.pkl", "ref.npz"):
        given = ["calc", "samples.npz", "--ref", ref, "--extractor", "digits", "--metrics", "fid", "--json", f"{ref}.json"]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["evaluation", *given])
        program.main()
        values.append(json.loads((tmp_path / f"{ref}.json").read_text())["metrics"]["fid-digits"]["value"])
    assert values[0] == values[1]
