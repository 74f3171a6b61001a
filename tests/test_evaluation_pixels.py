"""What can be no images of a model is refused, and images that repeat are counted: in `calc`, in `ref` and online."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import run_command

import fiducial
from fiducial import Stopped, UserError
from fiducial.evaluation import Evaluator
from fiducial.evaluation import __main__ as cli
from fiducial.evaluation.data.remarks import weights_unlike_published
from fiducial.evaluation.evaluate import Evaluation
from fiducial.evaluation.features.load import load_extractor
from fiducial.evaluation.settings import Settings
from fiducial.models.checkpoints import catalogue
from scripts.stand_ins import pictures, write_pngs

BLACK = "have no pixel above level 1 of 255: they are black, or values of 0 to 1 made uint8; multiply those by 255 first"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Samples, the same cast from [0, 1], one of them many times, and a reference with statistics and images."""
    place = tmp_path_factory.mktemp("pixels")
    images = pictures(60, 0)
    features = np.random.default_rng(0).normal(size=(500, 64))
    np.savez(place / "samples.npz", arr_0=images)
    np.savez(place / "others.npz", arr_0=pictures(60, 1))
    np.savez(place / "dark.npz", arr_0=(images / 255).astype(np.uint8))
    np.savez(place / "same.npz", arr_0=images[:1].repeat(60, 0))
    np.savez(place / "few.npz", arr_0=np.concatenate([images[:40], images[:20]]))
    np.savez(place / "adm.npz", arr_0=pictures(60, 1), mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    np.savez(place / "statistics.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    write_pngs(place / "dark", (images / 255).astype(np.uint8))
    return place


def run_here(*arguments):
    cli.run(cli.build_parser().parse_args(list(map(str, arguments))))


def evaluated(place, samples, reference):
    settings = Settings(metrics=("fid",), cache_dir=place / "cache")
    return Evaluation.prepare(str(place / reference), fiducial.init("cpu"), settings, "digits").evaluate(place / samples)


@pytest.mark.parametrize("exchanged", ["adm.npz", "statistics.npz"])
def test_samples_and_reference_that_are_exchanged_are_refused(place, exchanged, monkeypatch):
    monkeypatch.setattr("fiducial.evaluation.evaluate.load_extractor", lambda *_, **__: pytest.fail("weights were loaded"))
    said = rf"{exchanged} holds mu and sigma, so it is a reference and no samples; were samples and --ref exchanged\?"
    with pytest.raises((UserError, Stopped), match=said):
        run_here("calc", place / exchanged, "--ref", place / "samples.npz", "--extractor", "digits")
    with pytest.raises((UserError, Stopped), match="is a reference already"):
        run_here("ref", place / exchanged, "--extractor", "digits", "--out", place / "out.npz")


@pytest.mark.parametrize("dark", ["dark.npz", "dark"])
def test_pixels_of_0_to_1_are_refused_before_anything_expensive(place, dark, monkeypatch):
    monkeypatch.setattr("fiducial.evaluation.evaluate.extract_each", lambda *_: pytest.fail("images were extracted"))
    for samples, reference, whose in ((dark, "others.npz", "samples"), ("samples.npz", dark, "reference images")):
        with pytest.raises((UserError, Stopped), match=f"the 60 {whose} {BLACK}"):
            run_here("calc", place / samples, "--ref", place / reference, "--extractor", "digits")
    with pytest.raises((UserError, Stopped), match=f"the 60 images {BLACK}"):
        run_here("ref", place / dark, "--extractor", "digits", "--out", place / "out.npz")
    with pytest.raises((UserError, Stopped), match=f"the 60 training images {BLACK}|all the same"):
        run_here("calc", place / "samples.npz", "--ref", place / "others.npz", "--extractor", "digits", "--train", place / dark)
    with pytest.raises((UserError, Stopped), match=f"the 60 samples {BLACK}"):
        evaluated(place, dark, "others.npz")


def from_minus_1(images):
    """Of some bright and some black pixels, as [-1, 1] is cast to uint8 by way of int8: levels 0, 1 and 255."""
    return (images / 127.5 - 1).astype(np.int8).view(np.uint8)


def test_pixels_of_minus_1_to_1_are_refused_wherever_they_are_given(place):
    images = pictures(60, 0)
    images[:, :9], images[:, 9:18] = 0, 255
    np.savez(place / "signed.npz", arr_0=from_minus_1(images))
    said = "have no levels but 0, 1 and 255: they are values of -1 to 1 made uint8; save those times 127.5 plus 127.5"
    for samples, reference, whose in (("signed", "others", "samples"), ("samples", "signed", "reference images")):
        with pytest.raises((UserError, Stopped), match=f"the 60 {whose} {said}"):
            evaluated(place, f"{samples}.npz", f"{reference}.npz")
    evaluator = Evaluator(str(place / "others.npz"), settings=Settings(metrics=("fid",)), extractor="digits")
    with pytest.raises(UserError, match=f"the images {said}"):
        evaluator.update(from_minus_1(images[:20]))
    with pytest.raises(UserError, match=f"the images {said}"):
        evaluator.fresh().update(from_minus_1(images[:10])).compute()


def test_black_and_white_images_are_no_mistake(place):
    images = np.where(pictures(60, 0) > 127, 255, 0).astype(np.uint8)
    np.savez(place / "two.npz", arr_0=images)
    result = evaluated(place, "two.npz", "others.npz")
    assert result.metrics["fid-digits"].n == 60
    assert not any("made uint8" in text for text in result.warnings)


@pytest.mark.parametrize(("dark", "count", "said"), [(40, 70, "40 of the first 64"), (39, 40, "39 of the 40"), (0, 40, None)])
def test_dark_images_among_others_are_counted(place, dark, count, said):
    """As many as are looked at, which ends at the first sixteen without one."""
    images = pictures(count, 0)
    images[:dark] //= 255
    np.savez(place / "some.npz", arr_0=images)
    result = evaluated(place, "some.npz", "others.npz")
    assert result.metrics["fid-digits"].n == count
    expected = [f"{said} samples are black, or values of 0 to 1 or -1 to 1 made uint8."] if said else []
    assert [text for text in result.warnings if "made uint8" in text] == expected


def test_images_that_repeat_are_counted(place):
    done = run_command(
        *(
            "-m",
            "evaluation",
            "calc",
            place / "same.npz",
            "--ref",
            place / "few.npz",
            "--extractor",
            "digits",
            "--metrics",
            "fid",
        ),
        *("--json", place / "r.json", "--html", place / "r.html", "--cache-dir", place / "cache"),
    )
    assert done.returncode == 0, done.stderr
    for said in (
        "The 60 samples are 1 different image, the rest exact repeats.",
        "The 60 reference images are 40 different images, the rest exact repeats.",
    ):
        assert f"warning: {said}" in done.stdout
        assert said in json.loads((place / "r.json").read_text())["warnings"]
        assert said in (place / "r.html").read_text()
    assert not any("repeats" in text for text in evaluated(place, "samples.npz", "others.npz").warnings)


def test_a_reference_that_repeats_says_so_when_it_is_made_and_when_it_is_used(place, capsys):
    run_here("ref", place / "few.npz", "--extractor", "digits", "--out", place / "ref.npz", "--cache-dir", place / "cache")
    assert "warning: The 60 images are 40 different images, the rest exact repeats." in capsys.readouterr().out
    found = evaluated(place, "samples.npz", "ref.npz").warnings
    assert "The 60 reference images are 40 different images, the rest exact repeats." in found
    run_here("ref", place / "samples.npz", "--extractor", "digits", "--out", place / "ref.npz", "--cache-dir", place / "cache")
    assert "repeats" not in capsys.readouterr().out


def test_a_set_that_is_compared_with_itself_says_so(place):
    for reference in ("samples.npz", "ref-of-samples.npz"):
        if not (place / reference).exists():
            options = ("--extractor", "digits", "--out", place / reference, "--cache-dir", place / "cache")
            run_here("ref", place / "samples.npz", *options)
        found = evaluated(place, "samples.npz", reference).warnings
        assert any("the reference's own images, one for one" in text for text in found)
    assert not any("own images" in text for text in evaluated(place, "samples.npz", "others.npz").warnings)


def test_online_the_same_is_told_as_early_as_can_be(place):
    settings = Settings(metrics=("fid",), cache_dir=place / "cache")
    evaluator = Evaluator(str(place / "others.npz"), settings=settings, extractor="digits")
    dark = (pictures(60, 0) / 255).astype(np.uint8)
    evaluator.update(dark[:15])
    with pytest.raises(UserError, match=f"the images {BLACK}"):
        evaluator.compute()
    with pytest.raises(UserError, match=f"the images {BLACK}"):
        evaluator.update(dark[15:16])
    other = evaluator.fresh().update(np.concatenate([pictures(1, 0), dark[:15]])).update(dark[:15])
    warned = evaluator.fresh().merge(other).compute().warnings
    assert any("different images, the rest exact repeats" in text for text in warned)
    with pytest.raises(UserError, match="were samples and --ref exchanged"):
        Evaluation.prepare(str(place / "others.npz"), fiducial.init("cpu"), settings, "digits").evaluate(place / "adm.npz")


def test_weights_that_are_not_the_published_are_said_before_anything_is_extracted(place, inception_weights, monkeypatch, capsys):
    def too_late(*_):
        raise UserError("images are extracted")

    for place_of_use in ("evaluate", "making"):
        monkeypatch.setattr(f"fiducial.evaluation.{place_of_use}.extract_each", too_late)
    said = r"warning: The weights of inception \(SHA-256 [0-9a-f]{12}\) are not the published file: compare no number with"
    options = ("--inception-weights", inception_weights)
    for command in (
        ("calc", place / "samples.npz", "--ref", place / "others.npz"),
        ("ref", place / "samples.npz", "--out", place / "out.npz"),
    ):
        with pytest.raises(Stopped, match="images are extracted"):
            run_here(*command, *options)
        assert re.match(said, capsys.readouterr().err)
    prepared = Evaluation.prepare(
        str(place / "others.npz"), fiducial.init("cpu"), Settings(), None, {"inception": inception_weights}
    )
    (sentence,) = prepared.weights_unlike_published
    assert re.fullmatch(said.removeprefix("warning: ") + r" published ones\.", sentence)


def test_what_is_not_known_of_weights_is_said_of_a_given_file_only(place):
    digits = load_extractor("digits", None, fiducial.init("cpu"))
    assert weights_unlike_published(digits, None) is None
    unknown = replace(digits, as_published=None)
    assert weights_unlike_published(unknown, None) is None
    assert "Whether w.pth (SHA-256 " in weights_unlike_published(unknown, place / "w.pth")


def test_weights_in_the_place_of_dits_published_ones_are_said(tmp_path):
    published = catalogue.CATALOGUE["dit-xl-2-256"].path(tmp_path)
    given = ("DiT-XL/2", 256, 1000, tmp_path)
    assert "may be another than the published DiT-XL-2-256x256.pt" in catalogue.unlike_published(tmp_path / "mine.pt", *given)
    assert catalogue.unlike_published(published, *given) is None
    assert catalogue.unlike_published(None, *given) is None
    assert catalogue.unlike_published(tmp_path / "mine.pt", "DiT-XL/2", 256, 17, tmp_path) is None
