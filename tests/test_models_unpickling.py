"""Pickles that nobody has to trust: harmless things beside weights are read, all else is named, and no file costs much."""

import argparse
import collections
import datetime
import functools
import itertools
import json
import os
import pathlib
import pickle
import random
import re
import struct
import types
import zipfile

import numpy as np
import pytest
import torch
from formats import training_checkpoint
from safetensors.torch import load_file

from fiducial import UserError, quoted
from fiducial.models.checkpoints import pickles
from fiducial.models.checkpoints.checkpoint import read
from fiducial.models.checkpoints.shapes import check, describe
from fiducial.models.checkpoints.unpickling import unpickle
from fiducial.models.latent import LatentShape

MODEL = {"model": "DiT-XS/8", "num_classes": 10, "latent": LatentShape(4, 8)}
LABELS, POSITIONS, PATCHES = "y_embedder.embedding_table.weight", "pos_embed", "x_embedder.proj.weight"


@pytest.fixture
def state(tiny_checkpoint):
    return load_file(tiny_checkpoint)


def refusal(path):
    with pytest.raises(UserError) as caught:
        check(read(path).state, path, **MODEL)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    assert ". " not in sentence
    assert len(sentence) < 600
    return sentence


def nested(levels, kind=list):
    """Small in a file, endless when written out."""
    value = kind(["boom"])
    for _ in range(levels):
        value = kind([value, value])
    return value


HARMLESS = {
    "a path": pathlib.PosixPath("/data/imagenet"),
    "a path of Windows": pathlib.PureWindowsPath("c:/data"),
    "a float of numpy": np.float64(3.2),
    "an array": np.arange(5.0),
    "an array of text": np.array(["a", "b"]),
    "numpy's random state": np.random.get_state(),
    "a generator of numpy": np.random.default_rng(0),
    "an old generator of numpy": np.random.RandomState(0),
    "its state": np.random.default_rng(0).bit_generator.state,
    "a dtype": np.dtype("float32"),
    "a type of numpy": np.float32,
    "python's random state": random.getstate(),
    "a time": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    "a duration": datetime.timedelta(seconds=3),
    "a version": torch.__version__,
    "a default dictionary": collections.defaultdict(list, loss=[0.5]),
    "a queue": collections.deque([0.5, 0.4], maxlen=3),
    "an ordered dictionary": collections.OrderedDict(a=1),
    "a counter": collections.Counter("aab"),
    "sets": ({1, 2}, frozenset([3])),
    "arguments": types.SimpleNamespace(type=int),
}


@pytest.mark.parametrize("value", HARMLESS.values(), ids=HARMLESS)
def test_harmless_things_beside_weights_are_no_hindrance(state, tmp_path, value):
    torch.save(training_checkpoint(state, beside=value), tmp_path / "a.pt")
    torch.save(training_checkpoint(state, args=argparse.Namespace(num_classes=10, value=value)), tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        found = read(tmp_path / name)
        weights, kind = found.state, found.kind
        assert kind == "ema"
        assert all(torch.equal(weights[key], state[key]) for key in state)


def test_what_older_and_newer_versions_call_harmless_things(state, tmp_path):
    """Names of modules that moved: numpy.core became numpy._core, pathlib's classes are in pathlib._local for a while."""
    value = (np.float64(0.5), np.arange(3), pathlib.PosixPath("/a"))
    torch.save(training_checkpoint(state, beside=value), tmp_path / "a.pt")
    for old, new in ((b"numpy._core.", b"numpy.core."), (b"cpathlib\n", b"cpathlib._local\n")):
        rewrite(tmp_path / "a.pt", lambda data, old=old, new=new: data.replace(old, new))
    rewrite(tmp_path / "a.pt", lambda data: assert_in(b"numpy.core.multiarray", data) and assert_in(b"pathlib._local", data))
    assert read(tmp_path / "a.pt").kind == "ema"


def assert_in(part, data):
    assert part in data
    return data


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint16])
@pytest.mark.parametrize("order", "<>")
def test_numbers_of_numpy_are_numbers(state, tmp_path, kind, order):
    number = np.dtype(kind).newbyteorder(order).type(10)
    torch.save(training_checkpoint(state, args=argparse.Namespace(num_classes=number), train_steps=kind(300)), tmp_path / "a.pt")
    found = read(tmp_path / "a.pt")
    assert (found.trained_classes, found.step) == (10, 300)


@pytest.mark.parametrize(
    "value", [np.float32(0.1), np.float64(-2.5), np.float16(2), np.int8(-3), np.bool_(True), np.uint64(2**63)]
)
def test_numbers_of_numpy_keep_their_values(tmp_path, value):
    torch.save([value], tmp_path / "a.pt")
    assert unpickle(tmp_path / "a.pt") == [value.item()]


def rewrite(path, change, name="data.pkl", compression=zipfile.ZIP_STORED):
    """The same archive with `change` of one member."""
    with zipfile.ZipFile(path) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    path.unlink()  # it may be mapped
    with zipfile.ZipFile(path, "w", compression) as archive:
        for entry, data in members.items():
            archive.writestr(entry, change(data) if entry.endswith(name) else data)


class Unknown:
    pass


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (functools.partial(int, base=2), "holds functools.partial"),
        (Unknown(), "holds test_models_unpickling.Unknown"),
        (os.getcwd, "holds posix.getcwd"),
        (bytearray(b"abc"), "holds builtins.bytearray"),
        ([Unknown(), functools.partial(int), os.getcwd, itertools.count()], "and 1 more"),
    ],
)
def test_what_is_not_harmless_is_named_with_how_to_save_it_again(state, tmp_path, value, said):
    torch.save(training_checkpoint(state, args=argparse.Namespace(value=value)), tmp_path / "a.pt")
    sentence = refusal(tmp_path / "a.pt").replace("__builtin__", "builtins")
    assert said in sentence
    assert "save its weights alone, as by torch.save(torch.load(OLD, weights_only=False)" in sentence


def test_another_protocol_is_named(state, tmp_path):
    torch.save(state, tmp_path / "a.pt", pickle_protocol=4)
    assert "its pickle, of protocol 4, has a" in refusal(tmp_path / "a.pt")


def pickled(*parts):
    """A pickle by hand: instructions and values."""
    return b"\x80\x02" + b"".join(part if isinstance(part, bytes) else pickle.dumps(part, 2)[2:-1] for part in parts) + b"."


MUCH = "would become more than"
SET, ENCODE = b"c__builtin__\nset\nh\x01\x85R", b"c_codecs\nencode\nh\x01\x85R"  # of what is in the memo
DOUBLE = b"c_codecs\nencode\nh\x01X\x03\0\0\0hex\x86Rq\x01"
BOMBS = {
    "nested in arguments": (pickle.dumps(argparse.Namespace(class_to_idx={"a": nested(45)}), 2), MUCH),
    "hashed for ever": (pickled(b"}", nested(45, tuple), b"K\x01s"), MUCH),
    "hashed in a set": (pickled(b"c__builtin__\nset\n", [nested(45, tuple)], b"\x85R"), MUCH),
    "a set of one list again and again": (pickled(list(range(100_000)), b"q\x01", SET * 1000), MUCH),
    "text that doubles": (pickled(b"X\x02\0\0\0ab", b"q\x01", DOUBLE * 40), MUCH),
    "one long text again and again": (pickled("a" * 1_000_000, b"q\x01", ENCODE * 1000), MUCH),
    "filled when it is part of something": (pickled(b"]q\x01h\x01\x85", b"h\x01K\x01a"), "contains itself"),
    "too deep": (pickled(b")" + b"\x85" * 1000), "nested more than 200 deep"),
    "many instructions": (pickled(b"N" * (pickles.MOST_INSTRUCTIONS + 1)), "more than 2,000,000 instructions"),
}


@pytest.mark.parametrize(("data", "said"), BOMBS.values(), ids=BOMBS)
def test_a_pickle_that_would_cost_much_is_refused_unread(state, tmp_path, data, said, monkeypatch):
    torch.save(state, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", lambda _: data)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    assert re.search(f"was not unpickled: .*{said}", refusal(tmp_path / "a.pt"))


def test_a_pickle_of_many_bytes_is_refused_unread(state, tmp_path):
    torch.save(state, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", lambda _: b"(" * (pickles.MOST_BYTES + 1))
    assert "its pickle has 33,554,433 bytes" in refusal(tmp_path / "a.pt")


def test_long_lists_that_trainings_keep_are_no_bomb(state, tmp_path):
    losses = [0.5 + number for number in range(200_000)]
    torch.save(training_checkpoint(state, losses=losses, args=argparse.Namespace(order=losses[:50_000])), tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").kind == "ema"


def test_a_compressed_member_is_refused(state, tmp_path):
    """torch maps a tensor's bytes as they stand in the file, so a compressed one would be drawn from as noise."""
    torch.save(state, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", lambda data: data, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed, which torch.save never does" in refusal(tmp_path / "a.pt")


def test_a_zip_of_very_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fiducial.models.checkpoints.unpickling.LARGEST_DIRECTORY", 10_000)
    monkeypatch.setattr(pickles, "MOST_BYTES", 10_000)
    torch.save({f"k{number}": torch.zeros(1) for number in range(300)}, tmp_path / "a.pt")
    assert "its list of contents is larger than 10,000 bytes" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("key", "like", "sizes"),
    [(LABELS, (1, 1), (2**40, 160)), (POSITIONS, (1, 1, 1), (1, 10**10, 160)), (PATCHES, (1, 1, 1, 1), (160, 2**31, 8, 8))],
)
def test_tensors_that_claim_what_is_not_stored_are_refused(state, tmp_path, key, like, sizes):
    torch.save(training_checkpoint(state, ema=state | {key: torch.zeros(like).expand(sizes)}), tmp_path / "a.pt")
    assert "elements, of which 1 are stored" in refusal(tmp_path / "a.pt")


def test_a_tensor_without_values_is_refused(state, tmp_path):
    torch.save(state | {LABELS: torch.empty(11, 160, device="meta")}, tmp_path / "a.pt")
    assert "has a shape and no values" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("key", "sizes"), [(LABELS, (2**40, 0)), (POSITIONS, (1, 2**40, 0)), (PATCHES, (0, 4, 8, 8)), (PATCHES, (160, 4, 0, 8))]
)
def test_empty_tensors_are_no_network(state, key, sizes):
    with pytest.raises(UserError, match=f"its {key} is empty"):
        describe(state | {key: torch.empty(sizes)}, pathlib.Path("a.safetensors"))


def test_a_width_that_only_one_tensor_has_is_said_before_a_network_is_built(state):
    with pytest.raises(UserError, match=r"pos_embed of a network 160 wide is \(1, 1000000, 160\); found \(1, 1000000, 1\)"):
        check(state | {POSITIONS: torch.zeros(1, 10**6, 1)}, pathlib.Path("a.pt"), **MODEL)


def test_a_long_header_of_safetensors_is_refused_unread(tmp_path):
    header = json.dumps(
        {f"k{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(90_000)}
    ).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "its header has " in refusal(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", 2**40) + header)
    assert "not a whole safetensors file" in refusal(tmp_path / "b.safetensors")


def test_a_mapping_that_is_endless_when_written_out_is_shown_in_short(state, tmp_path):
    from fiducial.classes import from_mapping

    torch.save({"ema": state, "class_to_idx": {"a": nested(45)}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"maps 'a' to \[\[\[\["):
        from_mapping(read(tmp_path / "a.pt").class_to_idx, "here")


class Endless(list):
    """Fails where it would be written out, which of a list of lists of lists may take for ever."""

    def __repr__(self):
        raise AssertionError("it was written out")


def test_a_list_of_classes_is_never_written_out_to_be_looked_at():
    from fiducial.classes import from_mapping

    for entry in (Endless(["a", "b"]), [Endless(["a"]), "b"], ["a", Endless(["b"])], (Endless(),)):
        for content in ([entry, entry], {"0": entry, "1": entry}, {"a": entry}):
            with pytest.raises(UserError):
                from_mapping(content, "here")


def test_numbers_that_are_none_are_not_taken(state, tmp_path):
    torch.save(training_checkpoint(state, args={"num_classes": -1}, train_steps=2**600), tmp_path / "a.pt")
    found = read(tmp_path / "a.pt")
    assert (found.trained_classes, found.step) == (None, None)


SHORT = {
    "text": ("a'b\x1b", '"a\'b\\x1b"'),
    "long text": ("a" * 100, "'" + "a" * 59),
    "a list": (["a", 1, None, (2.5,), (), {"b": [True]}], "['a', 1, None, (2.5,), (), {'b': [True]}]"),
    "endless": (nested(60), "[" * 60),
    "a large number": (10**5000, "an integer of 16,610 bits"),
    "another object": (argparse.Namespace(a=nested(60)), "<Namespace>"),
}


@pytest.mark.parametrize(("value", "text"), SHORT.values(), ids=SHORT)
def test_a_value_is_quoted_no_further_than_it_is_shown(value, text):
    assert quoted(value) == text


def test_a_value_that_contains_itself_is_quoted():
    value = {}
    value["a"] = value
    assert quoted(value).startswith("{'a': {'a': {'a'")


def zipped(folder, name):
    with zipfile.ZipFile(folder / "other", "w") as archive:
        archive.writestr(name, b"hello")
    return (folder / "other").read_bytes()


OTHERS = {
    "EDM2's .pkl": (lambda _: pickle.dumps({"ema": [1, 2]}), "a bare pickle, as EDM's and EDM2's .pkl are"),
    "protocol 5": (lambda _: pickle.dumps({"ema": [1, 2]}, 5), "a bare pickle"),
    ".npy": (lambda _: b"\x93NUMPY\x01\0", "an array of numpy's"),
    ".tar": (lambda _: bytes(257) + b"ustar\0" + bytes(300), "a tar archive; unpack it"),
    ".tar.gz": (lambda _: b"\x1f\x8b\x08", "packed by gzip; unpack it"),
    ".png": (lambda _: b"\x89PNG\r\n\x1a\n", "a PNG image"),
    "a page": (lambda _: b"<!DOCTYPE html>", "a page or other text in tags"),
    "a pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "nothing": (lambda _: b"", "it is empty"),
    ".npz": (lambda folder: zipped(folder, "arr_0.npy"), "an .npz of numpy's"),
    "TorchScript": (lambda folder: zipped(folder, "code/constants.pkl"), "a TorchScript archive"),
    "another zip": (lambda folder: zipped(folder, "readme"), "a zip archive of something else"),
}


@pytest.mark.parametrize(("content", "said"), OTHERS.values(), ids=OTHERS)
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(tmp_path, content, said):
    (tmp_path / "a.pkl").write_bytes(content(tmp_path))
    sentence = refusal(tmp_path / "a.pkl")
    assert said in sentence
    assert "not whole in torch's zip format: it is" in sentence


def test_torchs_older_format_is_named(state, tmp_path):
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert "in torch's format of before 1.6; re-save it with torch.save" in refusal(tmp_path / "a.pt")


def test_a_named_pipe_is_said_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.pt")
    assert "it is a named pipe, not a file" in refusal(tmp_path / "a.pt")


def test_unpickled_content_is_what_was_saved(tmp_path):
    content = {"a": torch.arange(3), "b": [1, "two", 3.0, None, True], "c": (b"bytes", 3 + 1j)}
    torch.save(content, tmp_path / "a.pt")
    found = unpickle(tmp_path / "a.pt")
    assert torch.equal(found.pop("a"), content.pop("a"))
    assert found == content
