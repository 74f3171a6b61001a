import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from distributed import UserError
from evaluation.images import open_images

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
    assert (np.concatenate(list(images.batches(3))) == np.concatenate([PICTURES[0::2], PICTURES[1::2]])).all()


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
    with pytest.raises(UserError, match=r"a\.npz") as error:
        list(open_images(path).batches(4))
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
