"""What is said of the files that images came from: at once on the terminal, in the result, and on the page."""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import DIGITS
from PIL import Image
from test_evaluation_references import adm_crop

import fiducial
from fiducial import UserError
from fiducial.evaluation import Evaluator
from fiducial.evaluation import __main__ as cli
from fiducial.evaluation import evaluate as calculation
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.references import open_reference
from fiducial.evaluation.data.remarks import REFERENCE, SAMPLES, look_at, missing
from fiducial.evaluation.report.delivery import warnings_left
from scripts.stand_ins import pictures, write_pngs

COUNT = 12


def command(monkeypatch, capsys, *arguments: object) -> tuple[str, str]:
    """Runs `python -m evaluation` in this process: what it says on standard output, and on standard error before it computes."""
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    with fiducial.user_errors():
        cli.run(cli.build_parser().parse_args())
    out, err = capsys.readouterr()
    return out, err.partition("evaluating")[0]


def calc(monkeypatch, capsys, samples: Path, *arguments: object) -> tuple[dict, str, str]:
    """A result as JSON, with what is on the page and what was said on standard error before anything was computed."""
    files = samples.parent / "r.json", samples.parent / "r.html"
    wanted = "--extractor", "digits", "--metrics", "fid", "--json", files[0], "--html", files[1]
    out, err = command(monkeypatch, capsys, "calc", samples, *wanted, *arguments)
    result = json.loads(files[0].read_text())
    given = sum(f"warning: {text}\n" in err for text in result["warnings"])
    assert ("given at the start" in out) == bool(given)
    assert all((out + err).count(f"warning: {text}\n") == 1 for text in result["warnings"])
    return result, files[1].read_text(), err


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_pngs(tmp_path / "pngs", pictures(COUNT, 0, 64))


NOT_READ = "lie files that look like images and are not read: 2 GIF, 1 AVIF."


def spoil(folder: Path) -> None:
    """Puts three images beside the others that are not read."""
    for name in ("a.gif", "b"):
        Image.new("RGB", (64, 64)).save(folder / name, format="GIF")
    (folder / "c.avif").write_bytes(b"\0\0\0\x20ftypavif")


@pytest.mark.parametrize("which", ["samples", "reference"])
def test_images_that_are_not_read_are_counted_everywhere(which, folder, tmp_path, monkeypatch, capsys):
    other = write_pngs(tmp_path / "other", pictures(COUNT, 1, 64))
    spoil(folder)
    samples, reference = (folder, other) if which == "samples" else (other, folder)
    result, page, early = calc(monkeypatch, capsys, samples, "--ref", reference)
    called = "samples" if which == "samples" else "reference images"
    said = f"Beside the {COUNT} {called} {NOT_READ}"
    assert f"warning: {said}\n" in early
    assert said in result["warnings"]
    assert said in page
    assert result[which]["not_read"] == "2 GIF, 1 AVIF"


def test_a_reference_keeps_what_was_not_read_when_it_was_made(folder, tmp_path, monkeypatch, capsys):
    spoil(folder)
    out, early = command(monkeypatch, capsys, "ref", folder, "--extractor", "digits", "--out", tmp_path / "ref.npz")
    assert f"{COUNT} images, digits\n1 more warning was given at the start\n" in out
    assert f"Beside the {COUNT} images {NOT_READ}" in early
    assert open_reference(tmp_path / "ref.npz").provenance.not_read == "2 GIF, 1 AVIF"
    samples = write_pngs(tmp_path / "samples", pictures(COUNT, 1, 64))
    result, page, _ = calc(monkeypatch, capsys, samples, "--ref", tmp_path / "ref.npz")
    said = "When ref.npz was made, files that look like images were not read: 2 GIF, 1 AVIF."
    assert said in result["warnings"]
    assert said in page
    assert result["reference"]["not_read"] == "2 GIF, 1 AVIF"


@pytest.mark.parametrize("closed", [None, io.StringIO()])
def test_what_nobody_could_hear_at_the_start_stands_in_the_table(closed, folder, monkeypatch):
    spoil(folder)
    images = open_images(folder)
    assert len(look_at(images, SAMPLES, group := fiducial.init())) == 1
    monkeypatch.setattr(sys, "stderr", closed)
    if closed:
        closed.close()
    assert look_at(images, SAMPLES, group) == ()
    (sentence,) = missing(images, SAMPLES)
    assert warnings_left([sentence], ()) == [f"warning: {sentence}"]
    assert warnings_left([sentence, "Else.", "More."], ("More.", sentence)) == [
        "warning: Else.",
        "2 more warnings were given at the start",
    ]


@pytest.mark.parametrize(("whole", "said"), [(400, f"are {COUNT} of the 400 images"), (4, "in the folder of a run of 4;")])
def test_a_folder_that_is_not_all_of_its_run_is_said_at_once(whole, said, folder, monkeypatch, capsys):
    (folder / "manifest.json").write_text(json.dumps({"num_fid_samples": whole}))
    result, page, early = calc(monkeypatch, capsys, folder, "--ref", "digits")
    assert any(said in text for text in result["warnings"])
    assert f"warning: The samples are {COUNT}" in early
    assert said in early
    assert said in page


@pytest.mark.parametrize("inside", ["", "run/"])
def test_a_zip_that_is_not_all_of_its_run_is_said(inside, folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, f"{inside}{path.relative_to(folder)}")
        archive.writestr(f"{inside}manifest.json", json.dumps({"num_fid_samples": 400}))
    said = f"The samples are {COUNT} of the 400 images that the run in this zip is to have."
    assert missing(open_images(tmp_path / "run.zip"), SAMPLES) == [said]


def test_a_reference_that_is_a_run_is_asked_about(folder):
    (folder / "manifest.json").write_text(json.dumps({"num_fid_samples": COUNT}))
    images = open_images(folder)
    assert missing(images, SAMPLES) == []
    (sentence,) = missing(images, REFERENCE)
    assert sentence.endswith("were samples and --ref exchanged?")


def test_images_in_hidden_folders_are_counted(folder, tmp_path):
    for place in (".cache", ".cache/inner"):
        (folder / place).mkdir()
        for name in ("a.png", "b.JPG", ".c.png", "note.txt"):
            (folder / place / name).touch()
    images = open_images(folder)
    assert (images.count, images.not_read) == (COUNT, "4 in hidden folders")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in (path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder))
        archive.writestr("__MACOSX/a.png", "")
    assert open_images(tmp_path / "a.zip").not_read == "4 in hidden folders"


@pytest.mark.parametrize(
    "manifest", [f'{{"num_fid_samples": {COUNT}}}', '{"num_fid_samples": "many"}', "{}", "[]", "no JSON", None]
)
def test_a_whole_run_and_a_folder_of_nobodys_need_no_word(manifest, folder, monkeypatch, capsys):
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    result, _, early = calc(monkeypatch, capsys, folder, "--ref", "digits")
    assert early == ""
    assert all("singular" in text for text in result["warnings"])


def test_a_run_without_pngs_names_its_npz(tmp_path):
    (empty := tmp_path / "run").mkdir()
    (empty / "manifest.json").write_text("{}")
    np.savez(tmp_path / "run.npz", arr_0=pictures(COUNT, 0, 64))
    with pytest.raises(UserError, match=r"holds no images .*; the images of this run are in .*run\.npz"):
        Evaluator(str(empty), extractor="digits")


def photographs(folder: Path) -> list[np.ndarray]:
    """Images of several sizes and colours in files, and what ADM's crop makes of each."""
    folder.mkdir()
    cropped = []
    for index, (mode, pixels) in enumerate(
        zip(("RGB", "L", "RGBA", "P", "CMYK", "LA") * 2, pictures(COUNT, 3, 200), strict=True)
    ):
        image = Image.fromarray(pixels[: 90 + 9 * index]).convert(mode)
        path = folder / f"{index:02d}.{'tif' if mode == 'CMYK' else 'png'}"
        image.save(path)
        with Image.open(path) as again:
            cropped.append(adm_crop(again.convert("RGB"), 64))
    return cropped


def test_calc_crops_samples_and_reference_as_ref_does_and_says_so(folder, tmp_path, monkeypatch, capsys):
    cropped = photographs(tmp_path / "photographs")
    np.savez(tmp_path / "cropped.npz", arr_0=np.stack(cropped))
    expected, _, _ = calc(monkeypatch, capsys, tmp_path / "cropped.npz", "--ref", folder)
    result, page, _ = calc(monkeypatch, capsys, tmp_path / "photographs", "--ref", folder, "--image-size", 64)
    assert result["metrics"]["fid-digits"]["value"] == expected["metrics"]["fid-digits"]["value"]
    assert result["samples"]["pixels_sha256"] == expected["samples"]["pixels_sha256"]
    assert result["samples"]["resize"] == result["reference"]["resize"] == "RGB, ADM's centre crop to 64"
    assert expected["samples"]["resize"] is None
    said = "The samples are not as they are in their files: RGB, ADM's centre crop to 64."
    assert said in result["warnings"]
    assert said.replace("'", "&#x27;") in page
    swapped, _, _ = calc(monkeypatch, capsys, folder, "--ref", tmp_path / "photographs", "--image-size", 64)
    assert swapped["metrics"]["fid-digits"]["value"] == pytest.approx(expected["metrics"]["fid-digits"]["value"], rel=1e-9)


@pytest.mark.parametrize(("name", "size", "mode"), [("x.png", (64, 65), "RGB"), ("y.webp", (64, 64), "RGBA")])
def test_an_evaluator_refuses_a_reference_of_several_kinds_at_once(name, size, mode, folder):
    Image.new(mode, size, (9, 9, 9, 9)[: len(mode)]).save(folder / name, lossless=True)
    said = rf"{name} is 64 x 65, but '000000\.png' is 64 x 64" if mode == "RGB" else rf"{name} is not an 8-bit RGB image"
    with pytest.raises(UserError, match=said):
        Evaluator(str(folder), extractor="digits")


@pytest.mark.parametrize("kind", ["another size", "several sizes", "grey"])
def test_a_run_whose_reference_has_another_size_is_told_the_command_before_weights(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(calculation, "load_extractor", lambda *_, **__: pytest.fail("weights were loaded"))
    folder = write_pngs(tmp_path / "a folder", pictures(COUNT, 0, 96 if kind == "another size" else 64))
    if kind == "several sizes":
        Image.new("RGB", (70, 90), "red").save(folder / "z.png")
    elif kind == "grey":
        Image.new("L", (64, 64)).save(folder / "000000.png")
    said = f"; python -m evaluation ref '{folder}' --image-size 64 --extractor digits --out REF.npz makes one of this size"
    with pytest.raises(UserError) as error:
        Evaluator(str(folder), extractor="digits", image_size=64)
    assert str(error.value).endswith(said)


@pytest.mark.parametrize("which", ["samples", "reference"])
def test_values_of_0_to_1_are_refused_before_weights_are_loaded(which, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calculation, "load_extractor", lambda *_, **__: pytest.fail("weights were loaded"))
    dark = write_pngs(tmp_path / "dark", pictures(40, 1, 64) // 200)
    pair = (dark, folder) if which == "samples" else (folder, dark)
    with pytest.raises(SystemExit):
        command(monkeypatch, capsys, "calc", pair[0], "--ref", pair[1])
    assert "have no pixel above level 1 of 255" in capsys.readouterr().err


def test_lossy_files_are_told_by_their_bytes_in_the_result(folder, monkeypatch, capsys):
    buffer = io.BytesIO()
    Image.fromarray(pictures(1, 5, 64)[0]).save(buffer, "JPEG")
    (folder / "000003.png").write_bytes(buffer.getvalue())
    Image.fromarray(pictures(1, 6, 64)[0]).save(folder / "x.webp", format="WEBP")
    result, page, _ = calc(monkeypatch, capsys, folder, "--ref", "digits")
    said = f"2 of the {COUNT + 1} samples are JPEG and lossy WebP files; compression moves every metric, so write PNG."
    assert said in result["warnings"]
    assert said in page


@pytest.mark.parametrize("order", [">f8", "<f4", "fortran"])
def test_statistics_of_another_byte_or_memory_order_are_read(order, tmp_path):
    with np.load(DIGITS / "reference.npz") as arrays:
        own = dict(arrays)
    changed = {name: own[name].astype(order) if order != "fortran" else np.asfortranarray(own[name]) for name in ("mu", "sigma")}
    changed |= {"features": np.asfortranarray(own["features"]) if order == "fortran" else own["features"].astype(">f4")}
    changed |= {"labels": own["labels"].astype(">i8")} if "labels" in own else {}
    np.savez(tmp_path / "ref.npz", **own | changed)
    expected, found = open_reference(DIGITS / "reference.npz"), open_reference(tmp_path / "ref.npz")
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=1e-6, atol=1e-6)
    assert found.features.dtype == np.float32
    assert found.features.flags.c_contiguous
    assert (found.features == expected.features).all()


def test_labels_of_another_memory_order_leave_the_images_readable(tmp_path):
    images = pictures(4, 0, 16)
    np.savez(tmp_path / "one-hot.npz", arr_0=images, arr_1=np.asfortranarray(np.eye(4)))
    assert open_images(tmp_path / "one-hot.npz").labels is None
    np.savez(tmp_path / "big.npz", arr_0=images, arr_1=np.arange(4, dtype=">i8"))
    assert open_images(tmp_path / "big.npz").labels.tolist() == [0, 1, 2, 3]
