"""Hugging Face datasets as the library and the hub write them, against the same images in a folder."""

import io
import json
import sys

import datasets
import numpy as np
import pytest
from conftest import run_command
from PIL import Image
from pyarrow import parquet

from fiducial import UserError
from fiducial.evaluation.data import tables
from fiducial.evaluation.data.opening import open_images

COUNT = 150
PICTURES = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 3


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def dataset(kind: str = "PNG", **columns) -> datasets.Dataset:
    """A table of `PICTURES` with classes and further columns."""
    files = [{"bytes": encoded(pixels, kind), "path": None} for pixels in PICTURES]
    classes = datasets.ClassLabel(names=["cat", "dog", "owl"])
    features = {"id": datasets.Value("int64"), "picture": datasets.Image(), "label": classes}
    features |= {name: kind for name, (kind, _) in columns.items()}
    rows = {"id": range(COUNT), "picture": files, "label": LABELS} | {name: values for name, (_, values) in columns.items()}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def as_saved(folder, made=None):
    (dataset() if made is None else made).save_to_disk(folder, num_shards=3)
    return folder


def as_on_the_hub(folder, made=None, split="train", shards=3):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        part = (made or dataset()).shard(shards, number, contiguous=True)
        part.to_parquet(folder / "data" / f"{split}-{number:05d}-of-{shards:05d}.parquet", batch_size=20)
    (folder / ".cache").mkdir(exist_ok=True)
    (folder / ".cache" / "other-00000-of-00001.parquet").write_bytes(b"what the hub's client leaves")
    return folder


def without_metadata(folder):
    """As other tools write parquet: nothing says that the column holds images, and row groups have their own size."""
    folder.mkdir()
    table = parquet.read_table(as_on_the_hub(folder / "hub", shards=1) / "data" / "train-00000-of-00001.parquet")
    (folder / "plain").mkdir()
    parquet.write_table(table.replace_schema_metadata(None), folder / "plain" / "all.parquet", row_group_size=37)
    return folder / "plain" / "all.parquet"


FORMS = {"saved": as_saved, "hub": as_on_the_hub, "file": without_metadata}


@pytest.mark.parametrize("form", FORMS)
def test_a_dataset_is_read_in_the_order_of_its_rows(form, tmp_path):
    found = open_images(FORMS[form](tmp_path / "set"))
    assert (found.count, found.height, found.width) == (COUNT, 6, 5)
    assert not found.headers.lossy
    for size in (1, 64, 70, 1000):
        assert (np.concatenate(list(found.batches(size))) == PICTURES).all()
    for start, stop in ((0, 1), (49, 51), (37, 111), (149, 150), (40, 150)):
        assert (np.concatenate(list(found.batches(7, start, stop))) == PICTURES[start:stop]).all()
    picked = found.pick([149, 0, 74, 75, 2])
    assert {index: pixels.tolist() for index, pixels in picked.items()} == {index: PICTURES[index].tolist() for index in picked}
    assert list(picked) == [0, 2, 74, 75, 149]
    if form == "file":
        assert found.labels is None  # numbers without their names are not known to be classes
    else:
        assert found.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_its_content_is_hashed_whole(form, tmp_path):
    hashes = set()
    for name in ("one", "same", "other"):
        path = FORMS[form](tmp_path / name)
        files = [path] if path.is_file() else sorted(path.rglob("[!o]*.parquet")) + sorted(path.rglob("*.arrow"))
        if name == "other":
            whole = bytearray(files[-1].read_bytes())
            whole[len(whole) // 2] ^= 1
            files[-1].write_bytes(whole)
        hashes.add(open_images(path).content_sha256())
    assert len(hashes) == 2


def test_jpeg_files_are_told_by_their_bytes(tmp_path):
    assert open_images(as_saved(tmp_path / "saved", dataset("JPEG"))).headers.lossy == {"JPEG": COUNT}
    assert open_images(as_on_the_hub(tmp_path / "hub", dataset("JPEG"))).headers.lossy == {"JPEG": COUNT}


def test_a_crop_is_that_of_the_files(tmp_path):
    (tmp_path / "files").mkdir()
    for index, pixels in enumerate(PICTURES):
        (tmp_path / "files" / f"{index:06d}.png").write_bytes(encoded(pixels))
    batches = [list(open_images(path, crop=4).batches(64)) for path in (as_saved(tmp_path / "saved"), tmp_path / "files")]
    assert (np.concatenate(batches[0]) == np.concatenate(batches[1])).all()
    assert batches[0][0].shape == (64, 4, 4, 3)


def test_labels_that_are_kept_back_or_not_alone_are_none(tmp_path):
    hidden = dataset().map(lambda _: {"label": -1})
    assert open_images(as_saved(tmp_path / "hidden", hidden)).labels is None
    two = dataset(coarse=(datasets.ClassLabel(names=["a", "b", "c"]), LABELS))
    assert open_images(as_saved(tmp_path / "two", two)).labels is None


def test_no_more_than_a_few_rows_are_held(tmp_path, monkeypatch):
    held = []

    def counting(*arguments):
        rows = list(read(*arguments))
        held.append(len(rows))
        return iter(rows)

    read = tables.itertools.islice
    monkeypatch.setattr(tables, "itertools", type("", (), {"islice": counting, "accumulate": tables.itertools.accumulate}))
    assert len(list(open_images(as_saved(tmp_path / "saved")).batches(10))) == 15
    assert max(held) == 10


def two_images(folder):
    return as_saved(folder, dataset(mask=(datasets.Image(), [{"bytes": encoded(p), "path": None} for p in PICTURES])))


def no_images(folder):
    return as_saved(folder, dataset().remove_columns("picture"))


def two_splits(folder):
    datasets.DatasetDict({"train": dataset(), "test": dataset()}).save_to_disk(folder)
    return folder


def two_splits_of_the_hub(folder):
    as_on_the_hub(folder, split="test", shards=1)
    return as_on_the_hub(folder)


def a_shard_missing(folder):
    (as_on_the_hub(folder) / "data" / "train-00001-of-00003.parquet").unlink()
    return folder


def an_arrow_file_missing(folder):
    (as_saved(folder) / "data-00001-of-00003.arrow").unlink()
    return folder


def a_parquet_file_cut(folder):
    path = as_on_the_hub(folder) / "data" / "train-00002-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:5000])
    return folder


def a_state_cut(folder):
    path = as_saved(folder) / "state.json"
    path.write_text(path.read_text()[:40])
    return folder


def paths_only(folder):
    made = datasets.Dataset.from_dict({"picture": [{"bytes": None, "path": "a.png"}] * 2})
    return as_on_the_hub(folder, made, shards=1)


def another_size(folder):
    files = [{"bytes": encoded(pixels), "path": None} for pixels in (PICTURES[0], PICTURES[1][:5])]
    return as_on_the_hub(folder, datasets.Dataset.from_dict({"picture": files}), shards=1)


def no_rows(folder):
    return as_saved(folder, dataset().select([]))


def beside_pictures(folder):
    (as_on_the_hub(folder) / "logo.png").write_bytes(encoded(PICTURES[0]))
    return folder


REFUSED = {
    two_images: "several columns of images, picture, mask",
    no_images: "no column of images among id, label",
    two_splits: "give the folder of one: test, train",
    two_splits_of_the_hub: r"several splits \(.*data/test, .*data/train\)",
    a_shard_missing: "2 of the 3 parquet files of",
    an_arrow_file_missing: "not a whole folder of save_to_disk",
    a_parquet_file_cut: "does not hold whole parquet files",
    a_state_cut: "not a whole folder of save_to_disk",
    paths_only: "row 0 has no image in it",
    another_size: "row 1, is 5 x 5, but row 0 is 5 x 6",
    no_rows: "without rows",
    beside_pictures: "give the folder of what is meant",
}


@pytest.mark.parametrize("damage", REFUSED, ids=lambda damage: damage.__name__)
def test_what_cannot_be_meant_is_a_sentence(damage, tmp_path):
    path = damage(tmp_path / "set")
    for read in (lambda images: list(images.batches(64)), lambda images: images.headers):
        with pytest.raises(UserError, match=REFUSED[damage]) as error:
            read(open_images(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", [as_saved, as_on_the_hub])
def test_without_the_library_it_is_named(form, tmp_path, monkeypatch):
    path = form(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        open_images(path)


def test_a_reference_of_a_dataset_is_that_of_its_files(tmp_path):
    """By the command: the same hash of pixels and the same statistics."""
    pictures = np.repeat(np.repeat(PICTURES[:30], 11, axis=1), 13, axis=2)[:, :64, :64]
    made = datasets.Dataset.from_dict({"image": [{"bytes": encoded(pixels), "path": None} for pixels in pictures]})
    made.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    for index, pixels in enumerate(pictures):
        (tmp_path / "files" / f"{index:06d}.png").write_bytes(encoded(pixels))
    found = []
    for source in ("saved", "files"):
        out = tmp_path / f"{source}.npz"
        done = run_command("-m", "evaluation", "ref", tmp_path / source, "--extractor", "digits", "--out", out)
        assert done.returncode == 0, done.stderr
        with np.load(out) as arrays:
            found.append(
                (json.loads(str(arrays["provenance"]))["pixels_sha256"], arrays["mu"].tolist(), arrays["sigma"].tolist())
            )
    assert found[0] == found[1]
