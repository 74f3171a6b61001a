"""Pictures of a report: every class is reachable, real images are of the same class as the samples, and the page stays small."""

import numpy as np
import pytest
from conftest import DIGITS
from made_results import NASTY, Page, made
from PIL import Image

from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.references import open_reference
from fiducial.evaluation.data.runs import ClassNames
from fiducial.evaluation.pictures import beside, keep_beside, kept_beside, of_samples, same_indices
from fiducial.evaluation.report import report_page
from fiducial.evaluation.results.grid import Grid


def write(path, labels, size=8, first=0):
    """An npz in which an image's red is `first` and its class, and its green its index."""
    labels = np.array(labels)
    images = np.zeros((len(labels), size, size, 3), np.uint8)
    images[..., 0] = (first + labels)[:, None, None]
    images[..., 1] = np.arange(len(labels))[:, None, None] % 256
    np.savez(path, arr_0=images, arr_1=labels)
    return open_images(path)


def colours(kept: dict[int, np.ndarray]) -> dict[int, list[int]]:
    return {index: pixels[0, 0, :2].tolist() for index, pixels in kept.items()}


def test_every_class_has_pictures_and_a_place_that_is_linked(tmp_path):
    images = write(tmp_path / "s.npz", [label for label in range(25) for _ in range(6)])
    grid = of_samples(images)
    assert [label for label, _ in grid.rows] == [0, 3, 5, 8, 11, 13, 16, 19, 21, 24]
    assert [label for label, _ in grid.classes] == list(range(25))
    assert all(colours(grid.small)[index][0] == label for label, indices in grid.classes for index in indices)
    assert grid.classes[7][1] == [42, 43, 44, 45]
    names = ClassNames((NASTY, *(f"bird {number}" for number in range(1, 25))), "ee" * 32)
    page = Page(report_page(made(grid=grid, class_names=names)))
    ids = [attributes["id"] for _, attributes in page.attributes if attributes.get("id", "").startswith("class-")]
    assert ids == [f"class-{label}" for label in range(25)]
    assert "All 25 classes: samples" in page.texts["summary"]
    said = "Rows: 10 of 25 classes, evenly spaced by their numbers; all are below; of each the first 6 samples by index"
    assert any(text.startswith(said) for text in page.texts["p"])


def test_real_images_are_of_the_same_class_also_where_it_has_another_number(tmp_path):
    """The samples' class 0 is called as the folder that comes last."""
    samples = write(tmp_path / "s.npz", [0, 1, 2] * 4)
    folder = tmp_path / "train"
    real = write(tmp_path / "r.npz", [0, 1, 2] * 12, first=100)
    for index, pixels in real.pick(range(36)).items():
        place = folder / ("ant", "bee", "cat")[index % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:02}.png")
    names = ("cat", "bee", "ant")
    grid = of_samples(samples)
    found = beside(grid, samples, names, open_reference(folder), None, True)
    shown = {label: {colours(found.kept)[index][0] for index in indices} for label, indices in found.rows}
    assert shown == {0: {102}, 1: {101}, 2: {100}}
    assert [len(indices) for _, indices in found.rows] == [10, 10, 10]
    page = report_page(made(grid=grid, real=found))
    assert "Samples beside real images" in page
    assert page.count('alt="real image') == 6
    apart = beside(grid, samples, names, open_reference(folder), None, False)  # where its folders are not the classes
    assert {label for label, _ in apart.rows} == {None}
    assert "nothing says which" in apart.said


def test_a_reference_of_statistics_shows_what_is_kept_beside_it_or_says_that_it_has_none(tmp_path):
    samples = write(tmp_path / "s.npz", list(range(10)) * 4, 64)
    grid, digits = of_samples(samples), open_reference(DIGITS / "reference.npz")
    found = beside(grid, samples, (), digits, None, True)
    assert [label for label, _ in found.rows] == list(range(10))
    assert all(len(indices) == 10 for _, indices in found.rows)
    alone = tmp_path / "reference.npz"
    alone.write_bytes((DIGITS / "reference.npz").read_bytes())
    none = beside(grid, samples, (), open_reference(alone), None, True)
    assert (none.rows, "reference.npz has statistics alone" in none.said) == ([], True)
    kept_beside(alone).write_bytes(b"damaged")
    assert beside(grid, samples, (), open_reference(alone), None, True).said.startswith("Real images cannot be shown: ")
    training = write(tmp_path / "t.npz", [3, 4] * 5, 64)
    assert [label for label, _ in beside(grid, samples, (), None, training, True).rows] == [3, 4]


def test_what_is_kept_beside_a_reference_is_a_few_of_each_class(tmp_path):
    images = write(tmp_path / "r.npz", [label for label in range(300) for _ in range(8)], 80)
    path = keep_beside(images, tmp_path / "ref.npz")
    assert path == tmp_path / "ref.pictures.npz"
    kept = open_images(path)
    assert (kept.count, kept.height) == (6 * 300, 64)
    assert np.bincount(kept.labels).tolist() == [6] * 300
    assert kept.pick([13])[13][0, 0, :2].tolist() == images.pick([17])[17][0, 0, :2].tolist()


@pytest.mark.parametrize(("classes", "each"), [(500, 4), (1000, 3), (5000, 1)])
def test_the_pictures_of_all_classes_are_bounded(classes, each):
    labels = np.repeat(np.arange(classes), 5)
    grid = Grid.choose(labels, len(labels), 10, 10).of_every_class(labels)
    assert {len(indices) for _, indices in grid.classes} == {each}
    assert sum(len(indices) for _, indices in grid.classes) <= 3000
    assert (grid.classes[0][0], grid.classes[-1][0]) == (0, classes - 1)


@pytest.mark.long
def test_a_page_of_a_thousand_classes_takes_less_than_25_mb():
    """Of noise, which no codec makes small, beside as much of real images."""
    random, labels = np.random.default_rng(0), np.repeat(np.arange(1000), 10)

    def pick(indices):
        return {index: random.integers(0, 256, (128, 128, 3), dtype=np.uint8) for index in indices}

    grid, real = (Grid.choose(labels, len(labels), 10, 10).of_every_class(labels).fill(pick) for _ in range(2))
    page = report_page(made(grid=grid, real=real))
    assert page.count("data:image/webp;base64,") == 2000
    assert len(page) < 25e6


def test_the_same_indices_are_of_runs_whose_npz_is_there(tmp_path, monkeypatch):
    write(tmp_path / "a.npz", [1] * 30)
    (tmp_path / "b.npz").write_bytes(b"damaged")
    monkeypatch.setattr("fiducial.evaluation.pictures.find_run", lambda _, pixels: pixels == "aa" or None)
    files = {name: (tmp_path / f"{name}.json", "aa") for name in ("a", "b", "c")} | {"other": (tmp_path / "a.json", "bb")}
    found = same_indices(files, 30)
    assert list(found) == ["a"]
    assert colours(found["a"]) == {index: [1, index] for index in (0, 3, 6, 10, 13, 16, 19, 23, 26, 29)}
