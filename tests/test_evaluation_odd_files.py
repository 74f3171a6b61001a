"""What is no file in the place of one that is evaluated, compared, kept or written."""

import argparse
import os
import subprocess

import datasets
import numpy as np
import pytest
from made_results import made
from odd_files import KINDS, left_by_a_dead_process, make_sparse, no_waiting, put
from PIL import Image

from fiducial import UserError
from fiducial.evaluation.commands.common import check_outputs
from fiducial.evaluation.data.folders import files_in
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.references import find_reference
from fiducial.evaluation.data.tables import parquet_in
from fiducial.evaluation.features import dinov2, extraction, inception
from fiducial.evaluation.features.load import load_extractor
from fiducial.evaluation.report import write
from fiducial.evaluation.results.reading import find_result, read_result


@pytest.fixture(autouse=True)
def _guard():
    with no_waiting():
        yield


@pytest.fixture
def folder(tmp_path):
    """Four images of 64 x 64."""
    (made := tmp_path / "images").mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(made / f"{index}.png")
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_as_a_file_and_is_none_is_one_sentence(kind, tmp_path, alone):
    path = put(kind, tmp_path / "given.npz")
    said = f"{path}.*it is a {kind}, not a file"
    for read in (inception.load_inception, dinov2.load_dinov2, read_result):
        with pytest.raises(UserError, match=said):
            read(path)
    if kind != "folder":
        for read in (open_images, lambda path: find_reference(str(path), alone)):
            with pytest.raises(UserError, match=said):
                read(path)
        with pytest.raises(UserError, match=f"r.json: it is a {kind}, not a file"):
            find_result(put(kind, tmp_path / "r.json"))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_image_that_is_a_link_to_something_else_is_one_sentence(kind, folder, tmp_path):
    target = put(kind, tmp_path / "target")
    (folder / "2.png").unlink()
    (folder / "2.png").symlink_to(target)
    images = open_images(folder)
    for read in (lambda: list(images.batches(4)), images.content_sha256):
        with pytest.raises(UserError, match=rf"{folder}/2.png cannot be read.*it is a {kind}, not a file"):
            read()


def test_an_image_of_a_terabyte_is_not_read(folder):
    make_sparse(folder / "2.png")
    images = open_images(folder)
    for read in (lambda: list(images.batches(4)), images.content_sha256):
        with pytest.raises(UserError, match=r"2.png cannot be read.*it has 1,099,511,627,776 bytes, more than"):
            read()


def test_a_saved_dataset_with_a_pipe_for_a_shard_is_one_sentence(folder, tmp_path):
    files = [str(path) for path in sorted(folder.iterdir())]
    table = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    table.save_to_disk(tmp_path / "saved", num_shards=2)
    put("named pipe", next((tmp_path / "saved").glob("data-00001-*.arrow")))
    with pytest.raises(UserError, match=r"saved is not a whole folder of save_to_disk \(it is a named pipe, not a file\)"):
        open_images(tmp_path / "saved")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [extraction.ABOUT, extraction.FEATURES, extraction.PIXELS, extraction.STATISTICS])
def test_features_are_computed_again_where_one_of_their_files_is_none(name, kind, folder, tmp_path, alone):
    images, extractor = open_images(folder), load_extractor("digits", None, alone)
    first = extraction.extract(images, extractor, alone, 4, tmp_path / "cache")
    put(kind, first.folder / name)
    again = extraction.extract(images, extractor, alone, 4, tmp_path / "cache")
    assert again.origin == "computed"
    assert (again.rows == first.rows).all()
    assert extraction.extract(images, extractor, alone, 4, tmp_path / "cache").origin == "from the cache"


@pytest.mark.parametrize("kind", ["named pipe", "link", "file"])
def test_where_features_cannot_be_kept_is_told_before_they_are_computed(kind, folder, tmp_path, alone, monkeypatch):
    images, extractor = open_images(folder), load_extractor("digits", None, alone)
    entry = extraction.extract(images, extractor, alone, 4, tmp_path / "cache").folder
    elsewhere = entry.rename(tmp_path / "elsewhere")
    (elsewhere / extraction.ABOUT).unlink()
    if kind == "link":
        entry.symlink_to(elsewhere)
    else:
        entry.touch() if kind == "file" else put(kind, entry)
    monkeypatch.setattr(extraction, "_run", lambda *_: pytest.fail("they were computed"))
    with pytest.raises(UserError, match=f"{entry}: it is a link or no folder, where features are to be kept; remove it"):
        extraction.extract(images, extractor, alone, 4, tmp_path / "cache")


def test_what_killed_evaluations_left_in_the_cache_is_removed(folder, tmp_path, alone):
    images, extractor = open_images(folder), load_extractor("digits", None, alone)
    cache = tmp_path / "cache"
    for name in ("0123456789abcdef" * 2, "features"):
        (left := left_by_a_dead_process(cache / name)).mkdir(parents=True)
        (left / extraction.FEATURES).write_bytes(bytes(100))
    kept = extraction.extract(images, extractor, alone, 4, cache)
    assert list(cache.iterdir()) == [kept.folder]


def test_a_result_is_not_written_through_a_link(tmp_path):
    (victim := tmp_path / "victim").write_text("precious")
    for option, target in (("json", victim), ("html", tmp_path / "absent")):
        (path := tmp_path / f"r.{option}").symlink_to(target)
        with pytest.raises(UserError, match=f"{path} cannot be written: it is a link; give the file that it leads to"):
            check_outputs(argparse.Namespace(**{option: path}), [])
    write(made(), tmp_path / "r.json", tmp_path / "r.html")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "absent").exists()
    assert read_result(tmp_path / "r.json")


def test_a_folder_is_read_however_deep_it_is(tmp_path, monkeypatch):
    """Deeper than calls of Python may be. Links in a circle end, and a folder that has two names is read twice."""
    monkeypatch.chdir(tmp_path)
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    Image.new("RGB", (8, 8)).save("deep.png")
    os.symlink(tmp_path, "circle")
    os.chdir(tmp_path)
    os.mkdir("twice")
    Image.new("RGB", (8, 8)).save("twice/image.png")
    os.symlink("twice", "again")
    assert sorted(files_in(tmp_path)) == ["again/image.png", f"{'d/' * 1100}deep.png", "twice/image.png"]
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest's own removal calls itself for each


def test_a_deep_folder_without_images_holds_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    try:
        with pytest.raises(UserError, match="holds no images"):
            open_images(tmp_path)
        open(".hidden.parquet", "w").close()
        open("x.parquet", "w").close()
        assert parquet_in(tmp_path) == [tmp_path / f"{'d/' * 1100}x.parquet"]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # as above


def test_links_to_folders_of_links_are_not_followed_for_ever(tmp_path):
    """Ten links in each of nine folders, all to the next, are a thousand million paths."""
    for level in range(9):
        folder = tmp_path / str(level)
        folder.mkdir()
        for number in range(10):
            (folder / f"link{number}").symlink_to(tmp_path / str(level + 1))
    (tmp_path / "9").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "9" / "image.png")
    with pytest.raises(UserError, match="links lead to this folder from more than 100 others; remove some"):
        open_images(tmp_path / "0")
    assert open_images(tmp_path / "8").count == 10


def test_a_folder_that_is_too_deep_to_be_read_is_one_short_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(50):
        os.mkdir("d" * 100)
        os.chdir("d" * 100)
    os.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^/.*d… cannot be read \(it is too deep: its path has 4,\d+ bytes\)$") as told:
        list(files_in(tmp_path))
    assert len(str(told.value)) < 300
    subprocess.run(["rm", "-rf", tmp_path / ("d" * 100)], check=True)
