"""Whatever is in a file, the evaluator ends with its numbers or with one sentence: no traceback, no hang, nothing unpickled, no
other file read, no memory taken on a header's word."""

import io
import pickle
import resource
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fiducial import UserError
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.references import open_reference

QUIETLY = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def saved(save, **arrays) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


REFERENCE = {"mu": np.zeros(6), "sigma": np.eye(6)}
WHOLE = {
    "npz": saved(np.savez, arr_0=PICTURES, arr_1=np.arange(5)),
    "compressed": saved(np.savez_compressed, arr_0=PICTURES),
    "zip": zipped({f"{i}.png": png(pixels) for i, pixels in enumerate(PICTURES)}),
    "jpeg zip": zipped({f"{i}.jpg": png(pixels, "JPEG") for i, pixels in enumerate(PICTURES)}),
    "reference": saved(np.savez, mu=np.zeros(6), sigma=np.eye(6), arr_0=PICTURES, provenance=np.array("{}")),
}


def read_all(path: Path) -> None:
    """Everything that an evaluation reads of `path`, as samples and as a reference."""
    for source in (open_images, open_reference):
        opened = source(path)
        images = opened if source is open_images else opened.images
        if images is not None:
            images.content_sha256()
            assert sum(map(len, images.batches(2))) == images.count
            images.pick([0, images.count - 1])


def ends_well(path: Path) -> str | None:
    """The sentence that reading `path` ends in, or None. Any other exception is a failure."""
    try:
        read_all(path)
    except UserError as error:
        sentence = str(error)
    else:
        sentence = None
    assert is_well(sentence)
    return sentence


def is_well(sentence: str | None) -> bool:
    """Whether there was nothing to say, or it was said in one line."""
    return sentence is None or ("\n" not in sentence and 0 < len(sentence) < 1000)


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_files_are_read(kind, tmp_path):
    (tmp_path / "file").write_bytes(WHOLE[kind])
    assert ends_well(tmp_path / "file") is None


@pytest.mark.parametrize("kind", WHOLE)
@given(data=st.data())
@QUIETLY
def test_changed_bytes_end_in_numbers_or_a_sentence(kind, data, tmp_path):
    damaged = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(damaged))))
    (tmp_path / "file").write_bytes(damaged[:cut])
    assert is_well(ends_well(tmp_path / "file"))


@pytest.mark.parametrize("name", ["arr_0", "mu", "sigma", "provenance", "arr_1", "features"])
@given(data=st.data())
@QUIETLY
def test_any_header_ends_in_numbers_or_a_sentence(name, data, tmp_path):
    """Headers written by hand: odd shapes, types and sizes, with the zip around them whole."""
    kinds = ["|u1", "<f8", "<f4", "|O", "<c16", "<U5", "|V3", "<i8", "|b1", "[('a', '<f8')]", "nonsense"]
    descr = data.draw(st.sampled_from(kinds))
    numbers = st.lists(st.integers(-2, 10**12), max_size=5).map(tuple)
    shape = data.draw(st.one_of(numbers, *map(st.just, ((5, 8, 8, 3), (6,), (6, 6), "(1,", "x" * 5000))))
    text = f"{{'descr': {descr!r}, 'fortran_order': {data.draw(st.booleans())}, 'shape': {shape}, }}"
    head = b"\x93NUMPY" + bytes([data.draw(st.sampled_from([0, 1, 2, 3])), 0])
    member = head + len(text).to_bytes(2, "little") + text.encode() + data.draw(st.binary(max_size=300))
    arrays = {"mu": np.zeros(6), "sigma": np.eye(6), "arr_0": PICTURES}
    files = {f"{key}.npy": array_bytes(array) for key, array in arrays.items()}
    (tmp_path / "file").write_bytes(zipped(files | {f"{name}.npy": member}))
    assert is_well(ends_well(tmp_path / "file"))


def array_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@given(noise=st.binary(max_size=2000))
@QUIETLY
def test_any_bytes_named_png_end_in_a_sentence(noise, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    others = b"RIFF\xff\0\0\0WEBPVP8X", b"RIFF\xff\0\0\0WEBPVP8 ", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"BM"
    for prefix in (b"", b"\x89PNG\r\n\x1a\n", png(PICTURES[0])[:40], b"\xff\xd8\xff\xe0", *others):
        (folder / "0.png").write_bytes(prefix + noise)
        assert ends_well(folder) is not None


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["arr_0", "arr_1", "mu", "sigma", "provenance", "features"])
def test_nothing_is_unpickled(name, tmp_path):
    bomb = Bomb(tmp_path / "exploded")
    arrays = {"mu": np.zeros(6), "sigma": np.eye(6), "arr_0": PICTURES, "provenance": np.array("{}")}
    np.savez(tmp_path / "objects.npz", **arrays | {name: np.array([bomb] * 5, dtype=object)})
    sentence = ends_well(tmp_path / "objects.npz")
    assert sentence is not None or name == "arr_1"  # which counts as no labels
    for path in (tmp_path / "bare.npz", tmp_path / "folder.png"):
        path.write_bytes(pickle.dumps(bomb))
        assert ends_well(path) is not None
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("outside", ["../secret.png", "/secret.png", "a/../../secret.png"])
def test_names_in_a_zip_reach_nothing_outside_it(outside, tmp_path):
    """A file of that name is there; what is read is what the zip holds."""
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png(PICTURES[0]))
    (folder / "a.zip").write_bytes(zipped({outside: png(PICTURES[1])}))
    before = sorted(tmp_path.rglob("*"))
    images = open_images(folder / "a.zip")
    assert (next(images.batches(1)) == PICTURES[1]).all()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_with_a_link_reads_no_other_file(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(PICTURES[0]))
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, str(tmp_path / "secret.png"))
    assert "cannot be read as an image" in ends_well(tmp_path / "a.zip")


def bomb_png(side: int) -> bytes:
    """A PNG of one colour, a thousandth of its pixels in size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress(bytes(side * 3 + 1) * 64, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def huge_member(name: str, head: bytes, zeros: int) -> bytes:
    """A zip with one member of `head` and so many zeros, packed a thousand to one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as member:
        member.write(head)
        for _ in range(zeros >> 20):
            member.write(bytes(1 << 20))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "zip of png", "zip", "mu", "images", "labels", "features", "thin"])
def test_what_unpacks_a_thousandfold_takes_no_memory(kind, tmp_path):
    def head(shape, descr="<f8"):
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
        return buffer.getvalue()

    path = tmp_path / "bomb"
    if kind == "png":
        path = tmp_path / "bomb.d"
        path.mkdir()
        (path / "0.png").write_bytes(bomb_png(60_000))
    elif kind == "zip of png":
        path.write_bytes(zipped({"0.png": bomb_png(60_000)}))
    elif kind == "zip":
        path.write_bytes(huge_member("0.png", png(PICTURES[0])[:33], 600 << 20))
    elif kind == "mu":
        path.write_bytes(huge_member("mu.npy", head((600 << 17,)), 600 << 20))
    elif kind == "features":
        path.write_bytes(saved(np.savez_compressed, **REFERENCE, features=np.zeros((25 << 20, 6), dtype=np.float32)))
    elif kind == "thin":
        path.mkdir()
        Image.new("RGB", (50_000, 1)).save(path / "0.png")
    elif kind == "images":
        path.write_bytes(huge_member("arr_0.npy", head((1, 15_000, 15_000, 3), "|u1"), 600 << 20))
    else:
        path.write_bytes(saved(np.savez, arr_0=PICTURES, arr_1=np.zeros(60 << 20)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if kind == "thin":
        with pytest.raises(UserError, match="too long"):
            open_images(path, 256)
    else:
        assert (ends_well(path) is not None) == (kind != "labels")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KB
