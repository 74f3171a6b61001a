"""Which class of a reference is which of the samples': by name, or by a number that something vouches for, or not at all."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import run_command
from PIL import Image
from sklearn.datasets import load_digits

import fiducial
from fiducial import UserError
from fiducial.classes import imagenet
from fiducial.evaluation import Evaluator
from fiducial.evaluation.data.numbering import (
    UNPAIRED,
    Numbering,
    labels_of_folders,
    numbering_of_folders,
    pair,
    within_one_folder,
)
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.references import DIGITS, open_reference, write_reference
from fiducial.evaluation.evaluate import Evaluation
from fiducial.evaluation.report import report_page, result_table
from fiducial.evaluation.settings import Settings

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_NAMES = tuple("0123456789")
BY_NAME = tuple(sorted(imagenet().names))
ELEVEN = tuple(map(str, range(11)))


@pytest.fixture(scope="module")
def scans():
    """Half of scikit-learn's digits as (N, 64, 64, 3) uint8 and their labels, for samples, and the other half, for references."""
    values, digits = load_digits(return_X_y=True)
    grey = (values.reshape(-1, 8, 8) / 16 * 255).round().astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(one).resize((64, 64), Image.BICUBIC).convert("RGB")) for one in grey])
    return (images[1::2], digits[1::2]), (images[::2], digits[::2])


@pytest.fixture(scope="module")
def place(scans, tmp_path_factory):
    """`samples.npz`, and references in folders: by their digits, by words, with a class less, and in shards."""
    place = tmp_path_factory.mktemp("numbering")
    (images, labels), (others, theirs) = scans
    np.savez(place / "samples.npz", arr_0=images, arr_1=labels)
    trees = {
        "digits": lambda digit, _: str(digit),
        "words": lambda digit, _: WORDS[digit],
        "fewer": lambda digit, _: WORDS[digit] if digit != 3 else None,
        "shards": lambda _, index: f"{index // 90:05d}",
    }
    for tree, folder_of in trees.items():
        for index in np.random.default_rng(0).permutation(len(theirs)).tolist() if tree == "shards" else range(len(theirs)):
            if folder := folder_of(int(theirs[index]), index):
                (place / tree / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(others[index]).save(place / tree / folder / f"{index:05d}.png", compress_level=1)
    (place / "digits" / ".ipynb_checkpoints").mkdir()
    (place / "digits" / "empty").mkdir()
    return place


def evaluated(place, samples, reference, names=None):
    """The result of samples against a reference there; `names` stand in a file."""
    given = place / "names.json"
    if names:
        given.write_text(json.dumps(names))
    settings = Settings(metrics=("fid",), cache_dir=place / "cache")
    files = {"class_names": given if names else None}
    prepared = Evaluation.prepare(str(place / reference), fiducial.init("cpu"), settings, "digits", **files)
    return prepared.evaluate(place / samples)


def distances(result) -> dict[int, float]:
    return {score.label: score.distance.value for score in result.classes}


def test_folders_of_digits_vouch_for_themselves_also_beside_empty_and_hidden_ones(place):
    result = evaluated(place, "samples.npz", "digits")
    assert list(distances(result)) == list(range(10))
    assert max(distances(result).values()) < 3
    assert result.warnings == evaluated(place, "samples.npz", "digits", DIGIT_NAMES).warnings


@pytest.mark.parametrize(("of", "found"), [(lambda of: np.eye(10)[of], "float64 (898, 10)"), (np.float32, "float32 (898,)")])
def test_labels_that_are_no_integers_are_said(place, scans, of, found):
    """One-hot vectors, or floating-point numbers."""
    (images, labels), _ = scans
    np.savez(place / "odd.npz", arr_0=images, arr_1=of(labels))
    result = evaluated(place, "odd.npz", "digits")
    said = f"odd.npz: arr_1 is no labels: found {found}, and labels are 898 integers"
    assert (result.classes, result.left_out["FID-digits by class"]) == ([], said)
    assert open_images(place / "odd.npz").no_labels == said.removeprefix("odd.npz: ")


@pytest.mark.parametrize("names", [WORDS, {name: label for label, name in enumerate(WORDS)}])
def test_classes_are_compared_by_name_whatever_the_order_of_the_folders(place, names):
    """By the order of the folders, as it was, the smallest of nine distances is 159."""
    expected = distances(evaluated(place, "samples.npz", "digits"))
    assert distances(evaluated(place, "samples.npz", "words", names)) == pytest.approx(expected)


def test_samples_of_a_class_that_is_only_in_their_training_are_shifted_by_name(place, scans):
    """ImageFolder counts a hidden folder, so that every label is one more."""
    (images, labels), _ = scans
    np.savez(place / "shifted.npz", arr_0=images, arr_1=labels + 1)
    result = evaluated(place, "shifted.npz", "digits", (".ipynb_checkpoints", *DIGIT_NAMES))
    expected = {label + 1: value for label, value in distances(evaluated(place, "samples.npz", "digits")).items()}
    assert distances(result) == pytest.approx(expected)
    unnamed = evaluated(place, "shifted.npz", "digits")
    assert unnamed.classes == []
    assert "nothing says which of the samples' they are" in unnamed.left_out["FID-digits by class"]


@pytest.mark.parametrize(
    ("reference", "names", "said"),
    [
        ("words", None, r"words are folders \('eight', 'five', 'four', ...\), and nothing says which .* --class-names gives"),
        ("shards", None, r"shards are folders \('00000', '00001', '00002', ...\), and nothing says which"),
        ("shards", WORDS, r"no class of shards \('00000', '00001', '00002', ...\) is called as one of the samples' \('zero', "),
        ("digits", WORDS, r"no class of digits \('0', '1', '2', ...\) is called as one of the samples' \('zero', 'one', "),
    ],
)
def test_without_anything_that_vouches_fid_by_class_is_left_out_and_that_is_said(place, reference, names, said):
    result = evaluated(place, "samples.npz", reference, names)
    assert result.classes == []
    assert re.search(said, result.left_out["FID-digits by class"])
    assert re.search(f"left out: .*{said}", result_table(result))
    assert json.loads(result.to_json())["classes"] == []
    assert "FID by class needs" in report_page(result)


def test_a_class_that_the_reference_lacks_is_said(place):
    result = evaluated(place, "samples.npz", "fewer", WORDS)
    assert list(distances(result)) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert max(distances(result).values()) < 3
    assert any("no images of 1 of the samples' classes (three), so FID-digits by class lacks them" in w for w in result.warnings)
    assert evaluated(place, "samples.npz", "fewer").classes == []


def test_classes_that_lie_nearer_to_others_are_warned_about(place, scans):
    """Labels of the samples' own that are wrong, which nothing but the features can tell."""
    (images, labels), _ = scans
    np.savez(place / "mixed.npz", arr_0=images, arr_1=np.array([1, 0, *range(2, 10)])[labels])
    result = evaluated(place, "mixed.npz", "digits")
    assert distances(result)[0] > 100
    assert any("those of 2 of 10 classes lie nearer to another class of the reference" in text for text in result.warnings)
    assert not any("lie nearer" in text for text in evaluated(place, "samples.npz", "digits").warnings)


def test_shards_that_are_called_as_digits_are_no_classes(place, scans):
    """Their names vouch for labels that they do not have, which most classes show."""
    _, (others, _) = scans
    for index, image in enumerate(others[:880]):
        (place / "tens" / str(index // 88)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / "tens" / str(index // 88) / f"{index:05d}.png", compress_level=1)
    result = evaluated(place, "samples.npz", "tens")
    assert result.classes == []
    said = (
        r"([6-9]|10) of 10 classes of the samples lie nearer to another class of tens than to their own, so that its folders or"
    )
    assert re.match(said, result.left_out["FID-digits by class"])
    assert not any("lie nearer" in text for text in result.warnings)


def test_classes_within_a_single_folder_are_said(place):
    (place / "outer").mkdir()
    shutil.copytree(place / "words", place / "outer" / "train")
    result = evaluated(place, "samples.npz", "outer", WORDS)
    assert result.classes == []
    said = "all images of outer lie in its folder 'train', and in folders within ('eight', ...), of which FID by class needs"
    assert result.left_out["FID-digits by class"].startswith(said)
    options = ["--extractor", "digits", "--out", place / "outer.npz", "--cache-dir", place / "cache"]
    made = run_command("-m", "evaluation", "ref", place / "outer", *options)
    assert f"warning: FID by class cannot be had of it: {said}" in made.stdout
    result = evaluated(place, "samples.npz", "outer.npz", WORDS)
    assert result.left_out["FID-digits by class"].startswith(f"outer.npz has no classes: {said}")
    assert within_one_folder(("train/0.png", "train/1.png"), "r") == within_one_folder((), "r") == UNPAIRED


def test_a_reference_keeps_the_names_of_its_folders(place):
    options = ["--extractor", "digits", "--out", place / "words.npz", "--cache-dir", place / "cache"]
    made = run_command("-m", "evaluation", "ref", place / "words", *options)
    assert made.returncode == 0, made.stderr
    assert open_reference(place / "words.npz").numbering == Numbering(tuple(sorted(WORDS)), own=False)
    expected = distances(evaluated(place, "samples.npz", "digits"))
    assert distances(evaluated(place, "samples.npz", "words.npz", WORDS)) == pytest.approx(expected, rel=1e-6)
    assert evaluated(place, "samples.npz", "words.npz").classes == []
    older = replace(open_reference(place / "words.npz"), numbering=None)
    write_reference(older, place / "older.npz")
    result = evaluated(place, "samples.npz", "older.npz", WORDS)
    assert result.classes == []
    assert "older.npz keeps labels without what they mean" in result.left_out["FID-digits by class"]
    assert open_reference(DIGITS).numbering == Numbering()


def test_a_run_is_compared_by_the_names_in_its_manifest(place, scans):
    """Names come in with the run's own file of these pixels, without an option; another option is refused."""
    (images, labels), _ = scans
    (place / "drawn").mkdir(exist_ok=True)
    np.savez(place / "drawn.npz", arr_0=images, arr_1=labels)
    pixels = evaluated(place, "drawn.npz", "digits").samples["pixels_sha256"]
    recorded = {"names": list(WORDS), "sha256": "aa" * 32}
    content = {"class_names": recorded, "npz": {"pixels_sha256": pixels}}
    (place / "drawn" / "manifest.json").write_text(json.dumps(content))
    result = evaluated(place, "drawn.npz", "words")
    assert distances(result) == pytest.approx(distances(evaluated(place, "samples.npz", "digits")))
    assert result.class_names.names == WORDS
    with pytest.raises(UserError, match=r"drawn\.npz was drawn with, for index 0 is 'zero' there and '0' here"):
        evaluated(place, "drawn.npz", "words", DIGIT_NAMES)
    with pytest.raises(UserError, match=r"names 5 classes, but .*samples\.npz has the label 9"):
        evaluated(place, "samples.npz", "words", WORDS[:5])


def test_online_the_names_are_an_argument(place, scans):
    (images, labels), _ = scans
    settings = Settings(metrics=("fid",), cache_dir=place / "cache")
    for names, count in ((WORDS, 10), ((), 0)):
        evaluator = Evaluator(str(place / "words"), settings=settings, extractor="digits", class_names=names)
        result = evaluator.update(images, labels=labels).compute()
        assert len(result.classes) == count
        assert max(distances(result).values(), default=0) < 3
        assert (result.class_names and result.class_names.names) == (names or None)
    for names in ({name: WORDS.index(name) for name in reversed(WORDS)}, dict(reversed([*enumerate(WORDS)])), np.array(WORDS)):
        named = Evaluator(str(place / "words"), settings=settings, extractor="digits", class_names=names)
        assert named.class_names == tuple(WORDS)
    for names in ("words", {WORDS[0], WORDS[1]}, 7, iter(WORDS)):
        with pytest.raises(UserError, match="class_names: expected a list of names, or a mapping of names to labels; got"):
            Evaluator(str(place / "words"), settings=settings, extractor="digits", class_names=names)
    with pytest.raises(UserError, match="class_names: 'a' is the name of both 0 and 1"):
        Evaluator(str(place / "words"), settings=settings, extractor="digits", class_names=("a", "a"))


SYNSETS = imagenet().aliases
PAIRS = [  # the samples' names, what the reference's labels mean, the pairs of labels 0, 1 and 2
    ((), Numbering(), {0: 0, 1: 1, 2: 2}),
    ((), Numbering(("c", "b", "a")), {0: 0, 1: 1, 2: 2}),  # a dataset's own labels
    (("a", "b", "c"), Numbering(("c", "b", "a")), {0: 2, 1: 1, 2: 0}),
    (("a", "b", "c"), Numbering(("b", "x"), own=False), {1: 0}),
    (("a", "b", "c"), Numbering(("x", "y")), {}),
    (("golden retriever", "mouse, grey", "e\u0301"), Numbering(("golden_retriever", "grey", "é"), own=False), {0: 0, 1: 1, 2: 2}),
    (("tench, Tinca tinca", "crane", "goldfish"), Numbering(("goldfish", "tench", "crane", "crane")), {0: 1, 2: 0}),
    ((), Numbering(("0", "1", "2"), own=False), {0: 0, 1: 1, 2: 2}),
    ((), Numbering(("0", "1"), own=False), {}),  # a label that has no folder
    ((), Numbering(("1", "2", "3"), own=False), {}),
    ((), Numbering(("00", "01", "02"), own=False), {}),
    ((), Numbering(tuple(sorted(ELEVEN)), own=False), {}),  # 10 before 2: is it 2 or 10 that has the label 2?
    (ELEVEN, Numbering(tuple(sorted(ELEVEN)), own=False), {0: 0, 1: 1, 2: 3}),
    ((), Numbering(SYNSETS, own=False), {0: 0, 1: 1, 2: 2}),
    ((), Numbering(BY_NAME, own=False), {label: BY_NAME.index(imagenet().names[label]) for label in range(3)}),
    ((), Numbering(SYNSETS[1:], own=False), {}),
    (imagenet().names, Numbering(SYNSETS[1:3], own=False), {1: 0, 2: 1}),
    (imagenet().names, Numbering(("goldfish", "tench"), own=False), {0: 1, 1: 0}),
    (SYNSETS[5:8], Numbering(SYNSETS, own=False), {0: 5, 1: 6, 2: 7}),
]


@pytest.mark.parametrize(("names", "theirs", "expected"), PAIRS)
def test_pairs(names, theirs, expected):
    found = pair(np.array([0, 1, 2, 1]), names, theirs, "r")
    assert found.labels == expected
    assert bool(found.why) == (not expected)
    assert "\n" not in found.why


def test_the_null_label_has_no_class():
    assert pair(np.array([2, 2]), ("a", "b"), Numbering(("a", "b"), own=False), "r").lacking == ()


def test_more_folders_than_any_classes_are_none():
    files = [f"{number}/x.png" for number in range((1 << 15) + 1)]
    assert labels_of_folders(files) is None
    assert numbering_of_folders(files[:-1]) is not None


NOT_ONE = ["", "[]", "7", "{}", '{"names": [7], "own": true}', '{"names": ["a", "a"], "own": false}', "[" * 60_000]


@pytest.mark.parametrize("text", NOT_ONE, ids=lambda text: text[:40])
def test_what_is_no_numbering_is_a_damaged_reference(text, tmp_path):
    with np.load(DIGITS) as arrays:
        np.savez(tmp_path / "r.npz", **{**arrays, "numbering": np.array(text or " ")})
    with pytest.raises(UserError, match="is a damaged reference"):
        open_reference(tmp_path / "r.npz")
