import io
import itertools
import os
import struct
import threading
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from fiducial import UserError
from fiducial.evaluation.data.images import read_ahead
from fiducial.evaluation.data.opening import open_images

PICTURES = np.random.default_rng(0).integers(0, 256, (11, 6, 5, 3), dtype=np.uint8)


def write_folder(folder):
    for index, pixels in enumerate(PICTURES):
        path = folder / f"part{index % 2}" / f"{index:06d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("batch", [1, 4, 11, 64])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_streamed_in_order(batch, save, tmp_path):
    save(tmp_path / "a.npz", arr_0=PICTURES, arr_1=np.arange(11))
    images = open_images(tmp_path / "a.npz")
    assert (images.count, images.height, images.width) == (11, 6, 5)
    assert images.labels.tolist() == list(range(11))
    batches = list(images.batches(batch))
    assert (np.concatenate(batches) == PICTURES).all()
    assert all(len(b) == batch for b in batches[:-1])


def test_a_folder_is_read_with_its_subfolders_by_name(tmp_path):
    write_folder(tmp_path)
    (tmp_path / ".000000.png.1.tmp").write_bytes(b"half")
    images = open_images(tmp_path)
    assert images.labels is None
    assert images.classes.tolist() == [0] * 6 + [1] * 5
    assert (np.concatenate(list(images.batches(3))) == np.concatenate([PICTURES[0::2], PICTURES[1::2]])).all()


def zip_of(path, files: dict[str, bytes], compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def png_bytes(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_by_name_whatever_its_order(compression, tmp_path):
    files = {f"b/{index:03d}.png": png_bytes(PICTURES[index]) for index in reversed(range(11))}
    files |= {"a/readme.txt": b"no image", "__MACOSX/b/._000.png": b"not one either", "b/": b"", "b-1/x.txt": b""}
    images = open_images(zip_of(tmp_path / "a.zip", files, compression))
    assert images.count == 11
    assert (np.concatenate(list(images.batches(4))) == PICTURES).all()
    assert (next(images.batches(4, 5, 7)) == PICTURES[5:7]).all()


def test_a_folder_and_a_zip_of_it_have_one_order(tmp_path):
    names = ["a-1/x.png", "a/x.png", "a.png", "a/b/c.png", "B.png", "a/b.png"]
    for index, name in enumerate(names):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(PICTURES[index]))
    zip_of(tmp_path / "a.zip", {name: (tmp_path / "folder" / name).read_bytes() for name in names})
    assert open_images(tmp_path / "folder").names == open_images(tmp_path / "a.zip").names


def test_links_are_followed_and_a_pipe_called_an_image_is_told(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for index, path in enumerate((folder / "sub" / "0.png", tmp_path / "elsewhere" / "1.png")):
        path.write_bytes(png_bytes(PICTURES[index]))
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "circle").symlink_to(folder)
    (folder / "directory.png").mkdir()
    images = open_images(folder)
    assert set(images.names) == {"sub/0.png", "link/1.png"}
    assert len(next(iter(images.batches(2)))) == 2
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png cannot be read as an image \(it is a named pipe, not a file\)"):
        list(open_images(folder).batches(2))


@pytest.mark.parametrize("kind", ["gray", "colour"])
@pytest.mark.parametrize("crop", [None, 4])
def test_sixteen_bits_are_refused(kind, crop, tmp_path):
    """Pillow clips 16-bit grays when it converts them, and silently halves colours."""
    values = np.arange(30, dtype=">u2").reshape(6, 5) * 2000
    depth, channels = (0, 1) if kind == "gray" else (2, 3)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + np.repeat(row, channels).tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 16, depth, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "0.png").write_bytes(data)
    with pytest.raises(UserError, match="more than 8 bits"):
        open_images(tmp_path, crop)


def test_a_zip_with_one_name_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png_bytes(PICTURES[0]))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", png_bytes(PICTURES[1]))
    with pytest.raises(UserError, match=r"two files named 'a\.png'"):
        open_images(tmp_path / "a.zip")


@pytest.mark.parametrize("source", ["npz", "compressed", "folder"])
@pytest.mark.parametrize(("start", "stop"), [(0, 11), (4, 8), (10, 11), (3, 3)])
def test_a_range_is_read_alone(source, start, stop, tmp_path):
    if source == "folder":
        path = tmp_path / "folder"
        path.mkdir()
        for index, pixels in enumerate(PICTURES):
            Image.fromarray(pixels).save(path / f"{index:03d}.png")
    else:
        path = tmp_path / "a.npz"
        (np.savez if source == "npz" else np.savez_compressed)(path, arr_0=PICTURES)
    found = list(open_images(path).batches(3, start, stop))
    assert sum(map(len, found)) == stop - start
    if found:
        assert (np.concatenate(found) == PICTURES[start:stop]).all()
    picked = open_images(path).pick([9, 2, 2])
    assert set(picked) == {2, 9}
    assert (picked[9] == PICTURES[9]).all()


def test_content_and_pixels_are_told_apart(tmp_path):
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(first, arr_0=PICTURES)
    np.savez(second, arr_0=PICTURES[::-1])
    assert open_images(first).content_sha256() != open_images(second).content_sha256()
    for name in ("x", "y"):
        folder = tmp_path / name
        folder.mkdir()
        for index, pixels in enumerate(PICTURES):
            Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    contents = [open_images(tmp_path / name).content_sha256() for name in "xy"]
    assert contents[0] == contents[1]
    (tmp_path / "x" / "000.png").rename(tmp_path / "x" / "999.png")
    assert open_images(tmp_path / "x").content_sha256() != contents[0]


def test_reading_ahead_hands_on_items_errors_and_stops():
    assert list(read_ahead(iter(range(50)))) == list(range(50))

    def failing():
        yield 1
        raise UserError("the second is broken")

    with pytest.raises(UserError, match="second"):
        list(read_ahead(failing()))
    endless = read_ahead(itertools.count())
    assert next(endless) == 0
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def npz_bytes(array: np.ndarray, **kwargs) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=array, **kwargs)
    return buffer.getvalue()


def lying_header() -> bytes:
    """A header that claims more images than the file holds."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (1000, 6, 5, 3)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("arr_0.npy", member.getvalue() + PICTURES.tobytes())
    return buffer.getvalue()


def compressed_and_flipped() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, arr_0=PICTURES)
    whole = bytearray(buffer.getvalue())
    whole[300] ^= 0xFF
    return bytes(whole)


DAMAGED = {
    "empty": b"",
    "text": b"not a zip",
    "cut": npz_bytes(PICTURES)[:500],
    "float": npz_bytes(PICTURES.astype(np.float32)),
    "gray": npz_bytes(PICTURES[..., 0]),
    "rgba": npz_bytes(np.concatenate([PICTURES, PICTURES[..., :1]], axis=-1)),
    "object": npz_bytes(np.array([{"a": 1}], dtype=object)),
    "fortran": npz_bytes(np.asfortranarray(PICTURES)),
    "no images": npz_bytes(PICTURES[:0]),
    "flipped": npz_bytes(PICTURES).replace(PICTURES.tobytes()[100:104], b"\0\1\2\3"),
    "lying": lying_header(),
    "compressed and flipped": compressed_and_flipped(),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_npz_is_refused_in_a_sentence(damage, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(DAMAGED[damage])

    def read() -> None:
        images = open_images(path)
        images.content_sha256()
        list(images.batches(4))

    with pytest.raises(UserError, match=r"a\.npz") as error:
        read()
    assert "\n" not in str(error.value)


def test_labels_that_are_not_one_integer_an_image_are_no_labels(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=PICTURES, arr_1=np.zeros((11, 3)))
    assert open_images(tmp_path / "a.npz").labels is None


@pytest.mark.parametrize("damage", ["nothing", "other size", "gray", "cut", "absent"])
def test_a_damaged_folder_is_refused_by_the_file_at_fault(damage, tmp_path):
    folder = tmp_path / "images"
    if damage != "absent":
        folder.mkdir()
    if damage not in ("nothing", "absent"):
        write_folder(folder)
        victim = folder / "part1" / "000005.png"
        if damage == "cut":
            victim.write_bytes(victim.read_bytes()[:80])
        else:
            Image.fromarray(PICTURES[0][:3] if damage == "other size" else PICTURES[0][..., 0]).save(victim)
    with pytest.raises(UserError, match="000005" if damage in ("cut", "gray", "other size") else "images"):
        list(open_images(folder).batches(4))
