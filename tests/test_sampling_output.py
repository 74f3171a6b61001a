import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from distributed import UserError
from sampling import output

# VmHWM and not getrusage, whose maximum a child inherits from its parent.
PACK_IN_A_CHILD = """
import re, sys
from pathlib import Path
import numpy as np
from sampling import output

def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

folder, count = Path(sys.argv[1]), int(sys.argv[2])
before = memory("VmRSS")
output.pack_npz(folder, folder.parent / "run.npz", np.arange(count) % 1000, 256, lambda n: None)
print(memory("VmHWM") - before)
"""


def ignore(_: int) -> None: ...


def picture(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write(folder, pictures):
    written = []
    with output.PngWriter(folder, lambda: written.append(1), room=2) as writer:
        for index, pixels in enumerate(pictures):
            writer.submit(index, pixels)
    assert len(written) == len(pictures)


def test_images_survive_png_and_npz_in_index_order(tmp_path):
    pictures = np.stack([picture(8, seed) for seed in range(300)])
    labels = np.arange(300) % 7
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder, pictures)
    output.pack_npz(folder, tmp_path / "run.npz", labels, 8, ignore)
    with np.load(tmp_path / "run.npz", allow_pickle=False) as arrays:
        assert (arrays["arr_0"] == pictures).all()
        assert (arrays["arr_1"] == labels).all()
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].dtype == np.int64
        assert arrays["arr_0"].flags.c_contiguous
    assert all(entry.compress_type == zipfile.ZIP_STORED for entry in zipfile.ZipFile(tmp_path / "run.npz").infolist())


def test_equal_images_give_equal_npz_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, [picture(8, seed) for seed in range(5)])
        output.pack_npz(tmp_path / name, tmp_path / f"{name}.npz", np.arange(5), 8, ignore)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_existing_counts_whole_images_only(tmp_path):
    write(tmp_path, [picture(8, 0)] * 3)
    for name in (".000004.png.77.tmp", "4.png", "0000004.png", "000004.jpg", "000099.png", "manifest.json"):
        (tmp_path / name).touch()
    assert output.existing(tmp_path, 6).tolist() == [True, True, True, False, False, False]
    output.remove_leftovers(tmp_path)
    assert not (tmp_path / ".000004.png.77.tmp").exists()


def test_an_image_is_counted_when_it_is_there(tmp_path):
    seen = []
    with output.PngWriter(tmp_path, lambda: seen.append(len(list(tmp_path.glob("0*.png")))), room=1) as writer:
        for index in range(20):
            writer.submit(index, picture(8, index))
    assert all(there >= count for count, there in enumerate(sorted(seen), start=1))


def test_a_failed_write_reaches_the_sampler_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "absent", [picture(8, 0)] * 50)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "other size"])
def test_packing_names_the_image_that_is_damaged_and_leaves_the_old_npz(tmp_path, damage):
    folder, npz = tmp_path / "run", tmp_path / "run.npz"
    folder.mkdir()
    write(folder, [picture(8, seed) for seed in range(4)])
    npz.write_bytes(b"an earlier one")
    victim = folder / "000002.png"
    whole = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    elif damage == "other size":
        Image.fromarray(picture(9, 0)).save(victim)
    else:
        victim.write_bytes(whole[: len(whole) // 2 if damage == "truncated" else 0])
    with pytest.raises(UserError, match=r"000002\.png"):
        output.pack_npz(folder, npz, np.arange(4), 8, ignore)
    assert npz.read_bytes() == b"an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.npz"]


def peak_of_packing(tmp_path, count: int) -> int:
    """Bytes above the level before, while a child packs `count` images of 256 x 256."""
    folder = tmp_path / "run"
    folder.mkdir()
    for seed in range(10):
        buffer = io.BytesIO()
        Image.fromarray(picture(256, seed)).save(buffer, format="PNG", compress_level=1)
        (tmp_path / f"{seed}.png").write_bytes(buffer.getvalue())
    for index in range(count):
        output.png_path(folder, index).hardlink_to(tmp_path / f"{index % 10}.png")
    child = [sys.executable, "-c", PACK_IN_A_CHILD, str(folder), str(count)]
    try:
        return int(subprocess.run(child, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    finally:
        (tmp_path / "run.npz").unlink(missing_ok=True)


def test_packing_2000_images_takes_memory_that_their_400_mb_do_not_show_in(tmp_path):
    assert peak_of_packing(tmp_path, 2000) < 150e6


@pytest.mark.long
def test_packing_50000_images_peaks_below_300_mb(tmp_path):
    assert peak_of_packing(tmp_path, 50_000) < 300e6
