"""The npz as it grows: places, frame, checksums; read by numpy and zipfile, who know nothing of ours."""

import os
import zipfile
import zlib

import numpy as np
import pytest

from fiducial.sampling.store import npz as archive


def pictures(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def crcs(images: np.ndarray) -> np.ndarray:
    return np.array([zlib.crc32(image.tobytes()) for image in images], dtype=np.uint32)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 13, 64, 100])
@pytest.mark.parametrize("size", [1, 8, 64])
def test_images_written_out_of_order_make_an_npz(count, size, tmp_path):
    images, labels = pictures(count, size), np.arange(count) % 7
    part, path = tmp_path / "run.npz.part", tmp_path / "run.npz"
    part.touch()
    os.truncate(part, archive.slot(count, size))
    file = os.open(part, os.O_WRONLY)
    for index in np.random.default_rng(1).permutation(count).tolist():
        archive.write_pixels(file, index, images[index].tobytes(), size)
    os.close(file)
    archive.complete(part, path, archive.frame(labels, size, crcs(images)))
    assert not part.exists()
    assert path.stat().st_size == archive.size(count, size)
    with np.load(path, allow_pickle=False) as arrays:
        assert (arrays["arr_0"] == images).all()
        assert (arrays["arr_1"] == labels).all()
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].dtype == np.int64
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None  # reads all and compares the CRCs
        assert [entry.compress_type for entry in file.infolist()] == [zipfile.ZIP_STORED] * 2


def test_pixels_begin_on_a_page():
    head, _ = archive.frame(np.arange(3), 8, np.zeros(3, np.uint32))
    assert len(head) == archive.slot(0, 8) == 65536
    assert archive.slot(1, 256) % 4096 == 0


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 1000])
@pytest.mark.parametrize("size", [1, 100])
def test_crcs_combine_to_that_of_the_whole(count, size):
    first, texts = b"before", [np.random.default_rng(seed).bytes(size) for seed in range(count)]
    found = archive.combine_crcs(zlib.crc32(first), np.array([zlib.crc32(text) for text in texts], np.uint32), size)
    assert found == zlib.crc32(first + b"".join(texts))


def test_a_whole_npz_is_not_written_again(tmp_path):
    images = pictures(4, 8)
    frame = archive.frame(np.arange(4), 8, crcs(images))
    path = tmp_path / "run.npz"
    path.write_bytes(frame[0] + images.tobytes() + frame[1])
    before = path.stat().st_mtime_ns
    archive.complete(path, path, frame)
    assert path.stat().st_mtime_ns == before
    assert not archive.has_frame(path, archive.frame(np.arange(4) + 1, 8, crcs(images)))
