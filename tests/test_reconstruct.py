"""`fiducial reconstruct` as it is used: its numbers beside those of other programs, ranks, what it refuses, its files."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS, ROOT, run_command
from diffusers import AutoencoderKL
from json_schema import faults
from made_results import Page
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from test_evaluation_cli import evaluate

import fiducial
from fiducial.evaluation.reconstruction.result import FORMAT, Reconstruction, read_moves
from fiducial.models.decoders.autoencoder import Autoencoder
from fiducial.sampling.noise import standard_normal
from fiducial.studies import reconstruct
from fiducial.studies.roundtrip import How, Roundtrip
from scripts.stand_ins import pictures, write_pngs

SCHEMA = json.loads((ROOT / "evaluation" / "results" / "schema.json").read_text())
COUNT, BATCH = 75, 16
QUICK = ("--extractor", "digits", "--metrics", "rfid,psnr,ssim")
CPU = torch.device("cpu")


def tiny_autoencoders(*folders: Path) -> None:
    """Random autoencoders that reduce by 4, as diffusers saves them: the first, and others that lie near it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.5,
        )
        for folder in folders:
            network.save_pretrained(folder)
            for parameter in network.parameters():
                parameter.data += 0.02 * torch.randn(parameter.shape)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Images as an npz and as class folders, and two autoencoders."""
    folder = tmp_path_factory.mktemp("reconstruct")
    images = pictures(COUNT, 0, 64)
    np.savez(folder / "images.npz", arr_0=images)
    (folder / "tree").mkdir()
    write_pngs(folder / "tree" / "a", images[:40])
    write_pngs(folder / "tree" / "b", images[40:])
    tiny_autoencoders(folder / "one", folder / "two")
    return folder


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Runs the command in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["reconstruct", *map(str, arguments)])
    code = 0
    try:
        reconstruct.main()
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    return code, out, err


@torch.no_grad()
def by_diffusers(folder: Path, images: np.ndarray) -> np.ndarray:
    """Reconstructions (N, H, W, 3) uint8 by diffusers alone, batches as the command has them, rounded half up."""
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True).eval()
    found = []
    for start in range(0, len(images), BATCH):
        x = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2) / 127.5 - 1
        found.append(vae.decode(vae.encode(x).latent_dist.mode()).sample.permute(0, 2, 3, 1).numpy())
    return np.floor(np.clip(127.5 * np.concatenate(found) + 128, 0, 255)).astype(np.uint8)


def test_the_numbers_are_those_of_other_programs(place, tmp_path, monkeypatch, capsys):
    """diffusers encodes and decodes, scikit-image compares, and `calc` finds the distance of the images that came of it."""
    files = ("--json", tmp_path / "one.json", "--html", tmp_path / "one.html")
    code, out, err = run(monkeypatch, capsys, place / "tree", "--vae", place / "one", *QUICK, *files)
    assert code == 0, err
    result, images = json.loads((tmp_path / "one.json").read_text()), pictures(COUNT, 0, 64)
    found = by_diffusers(place / "one", images)
    assert found.std() > 3
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255, "channel_axis": -1}
    each = list(zip(images, found, strict=True))
    expected = {
        "psnr": [peak_signal_noise_ratio(*pair, data_range=255) for pair in each],
        "ssim": [structural_similarity(*pair, **how) for pair in each],
    }
    for name, values in expected.items():
        number = result["metrics"][name]
        assert number["value"] == pytest.approx(np.mean(values), abs=1e-4)  # a pixel of a boundary may be rounded otherwise
        assert number["error"] == pytest.approx(np.std(values, ddof=1) / COUNT**0.5, rel=1e-3)
    np.savez(tmp_path / "found.npz", arr_0=found)
    calc = ("calc", tmp_path / "found.npz", "--ref", place / "images.npz", "--extractor", "digits", "--metrics", "fid")
    code, _, err = evaluate(monkeypatch, capsys, *calc, "--json", tmp_path / "calc.json")
    assert code == 0, err
    fid = json.loads((tmp_path / "calc.json").read_text())["metrics"]["fid-digits"]["value"]
    rfid = result["metrics"]["rfid-digits"]
    assert rfid["value"] == pytest.approx(fid, rel=1e-3)
    assert (rfid["n"], rfid["reference_n"], rfid["low"] < rfid["value"] < rfid["high"]) == (COUNT, COUNT, True)
    worst = int(np.argmin(expected["psnr"]))
    assert (result["worst_by"], result["worst"][0]["index"]) == ("psnr", worst)
    assert result["worst"][0]["name"] == f"{'a' if worst < 40 else 'b'}/{worst if worst < 40 else worst - 40:06d}.png"
    assert faults(SCHEMA["$defs"]["reconstruction"], result, SCHEMA) == []
    assert (result["format"], SCHEMA["$defs"]["reconstruction"]["properties"]["format"]["const"]) == (FORMAT, FORMAT)
    codec = result["codec"]
    told = ("AutoencoderKL", 4, 4, 0.5, "mode", "fp32", "half-up")
    assert (
        tuple(codec[name] for name in ("kind", "latent_channels", "factor", "latent_scale", "posterior", "precision")) == told[:6]
    )
    assert codec["vae_sha256"] == fiducial.file_sha256(place / "one" / "diffusion_pytorch_model.safetensors")
    page = Page((tmp_path / "one.html").read_text())
    assert len([one for tag, one in page.attributes if tag == "img"]) == 3 * (6 + 6)
    assert {"Evenly spaced", "The worst by PSNR"} <= set(page.texts["h2"])
    assert "rFID-digits" in out
    assert f"{COUNT} images of 64 x 64 reconstructed by {place / 'one'}" in out


def test_moves_are_those_of_the_intervals_and_survive_the_file(place, tmp_path, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, place / "images.npz", "--vae", place / "one", *QUICK, "--json", tmp_path / "r.json")
    assert code == 0, err
    result = Reconstruction.parse(json.loads((tmp_path / "r.json").read_text()))
    moves = read_moves(tmp_path / "r.json", result.influences)
    assert set(moves) == {"rfid-digits", "psnr", "ssim"}
    for key, values in moves.items():
        assert len(values) == COUNT
        assert np.linalg.norm(values) == pytest.approx(result.metrics[key].error, rel=1e-5)


def test_differences_on_the_same_images_are_paired(place, tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        given = (place / "images.npz", "--vae", place / name, *QUICK, "--json", tmp_path / f"{name}.json")
        code, _, err = run(monkeypatch, capsys, *given)
        assert code == 0, err
    both = (tmp_path / "one.json", tmp_path / "two.json")
    code, out, err = evaluate(monkeypatch, capsys, "compare", *both, "--json", tmp_path / "c.json", "--html", tmp_path / "c.html")
    assert code == 0, err
    assert "paired, image by image" in out
    found = {one["key"]: one for one in json.loads((tmp_path / "c.json").read_text())["differences"]}
    images = pictures(COUNT, 0, 64)
    one, two = (by_diffusers(place / name, images) for name in ("one", "two"))
    psnr = [[peak_signal_noise_ratio(*pair) for pair in zip(images, side, strict=True)] for side in (one, two)]
    gaps = np.subtract(psnr[1], psnr[0])
    assert found["psnr"]["difference"] == pytest.approx(gaps.mean(), abs=1e-4)
    assert found["psnr"]["error"] == pytest.approx(gaps.std(ddof=1) / COUNT**0.5, rel=1e-3)
    alone = np.hypot(*(json.loads(path.read_text())["metrics"]["psnr"]["error"] for path in both))
    assert found["psnr"]["error"] < 0.8 * alone
    (tmp_path / "two.influences.f32").unlink()
    code, _, err = evaluate(monkeypatch, capsys, "compare", *both, "--json", tmp_path / "c.json")
    assert code == 0, err
    found = {one["key"]: one for one in json.loads((tmp_path / "c.json").read_text())["differences"]}
    assert (found["psnr"]["error"], found["psnr"]["note"]) == (pytest.approx(alone), "")


def test_what_cannot_be_compared_is_one_sentence(place, tmp_path, monkeypatch, capsys):
    psnr = ("--metrics", "psnr")
    code, _, err = run(monkeypatch, capsys, place / "images.npz", "--vae", place / "one", *psnr, "--json", tmp_path / "one.json")
    assert code == 0, err
    np.savez(tmp_path / "others.npz", arr_0=pictures(COUNT, 1, 64))
    run(monkeypatch, capsys, tmp_path / "others.npz", "--vae", place / "two", *psnr, "--json", tmp_path / "two.json")
    code, _, err = evaluate(monkeypatch, capsys, "compare", tmp_path / "one.json", tmp_path / "two.json")
    assert (code, "originals SHA-256 is" in err) == (2, True)
    calc = ("calc", place / "images.npz", "--ref", "digits", "--metrics", "fid", "--json", tmp_path / "calc.json")
    assert evaluate(monkeypatch, capsys, *calc)[0] == 0
    code, _, err = evaluate(monkeypatch, capsys, "compare", tmp_path / "one.json", tmp_path / "calc.json")
    assert (code, "one is of reconstructions, and the other of samples" in err) == (2, True)
    data = json.loads((tmp_path / "one.json").read_text())
    del data["codec"]["vae"]
    (tmp_path / "two.json").write_text(json.dumps(data))
    code, _, err = evaluate(monkeypatch, capsys, "compare", tmp_path / "one.json", tmp_path / "two.json")
    assert (code, "it has no codec.vae" in err) == (2, True)


@pytest.mark.long
def test_two_ranks_give_what_one_gives(place, tmp_path):
    """To 1e-6; pixels to the bit, as batches are the same."""
    found = {}
    for ranks in (1, 2):
        path, given = tmp_path / f"{ranks}.json", ("reconstruct", place / "tree", "--vae", place / "one", *QUICK)
        more = ("--posterior", "sample", "--seed", "3", "--no-cache", "--json", path, "--html", tmp_path / f"{ranks}.html")
        done = run_command("-m", "fiducial", *given, *more, ranks=ranks)
        assert done.returncode == 0, done.stderr
        found[ranks] = json.loads(path.read_text())
        assert found[ranks]["settings"]["world_size"] == ranks
    one, two = found.values()
    assert one["codec"] == two["codec"]
    assert one["originals"] == two["originals"]
    for key, number in one["metrics"].items():
        for name in ("value", "error", "low", "high"):
            assert two["metrics"][key][name] == pytest.approx(number[name], rel=1e-6)
    assert [image["index"] for image in one["worst"]] == [image["index"] for image in two["worst"]]
    moves = [read_moves(tmp_path / f"{ranks}.json", Reconstruction.parse(found[ranks]).influences) for ranks in (1, 2)]
    assert all(np.allclose(moves[0][key], moves[1][key], rtol=1e-5, atol=1e-9) for key in moves[0])


@torch.no_grad()
def test_a_sample_is_a_function_of_seed_and_index():
    codec, images = Autoencoder(DIGITS / "vae"), pictures(3, 0, 64)
    trip = Roundtrip(codec, How("fp32", "none", 5), CPU)
    found = trip(images, np.array([7, 2, 40]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(trip(images[1:2], np.array([2]))[0], found[1], atol=1e-2)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    noise = torch.from_numpy(np.stack([standard_normal(5, index, 0, (4, 8, 8)) for index in (7, 2, 40)]))
    posterior = codec.vae.encode(x).latent_dist
    expected = codec.vae.decode(posterior.mean + posterior.std * noise).sample
    np.testing.assert_allclose(found, (127.5 * (expected + 1)).clamp(0, 255).permute(0, 2, 3, 1).numpy(), atol=1e-2)
    mode = Roundtrip(Autoencoder(DIGITS / "vae"), How("fp32", "none", None), CPU)(images, np.array([7, 2, 40]))
    assert np.abs(mode - found).max() > 0.1


def test_of_a_codec_that_loses_nothing_psnr_is_said_to_be_infinite(place, tmp_path, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, place / "images.npz", "--vae", "pixels", *QUICK, "--json", tmp_path / "r.json")
    assert code == 0, err
    result = json.loads((tmp_path / "r.json").read_text())
    assert faults(SCHEMA["$defs"]["reconstruction"], result, SCHEMA) == []
    assert result["identical"] == COUNT
    assert result["left_out"] == {"PSNR": "every reconstruction equals its original, and has an infinite PSNR"}
    assert {key: one["value"] for key, one in result["metrics"].items()} == {"rfid-digits": 0.0, "ssim": 1.0}
    assert f"{COUNT} of {COUNT} reconstructions equal their originals" in out


def test_a_reference_takes_the_originals_place(place, tmp_path, monkeypatch, capsys):
    given = (place / "images.npz", "--vae", place / "one", "--metrics", "rfid", "--ref", "digits", "--json", tmp_path / "r.json")
    code, out, err = run(monkeypatch, capsys, *given)
    assert code == 0, err
    (number,) = json.loads((tmp_path / "r.json").read_text())["metrics"].values()
    assert number["definition"].startswith("Fréchet distance on the 64 features of the embedded digit classifier between")
    assert "and the reference" in number["definition"]
    assert "to reference.npz" in out
    np.savez(tmp_path / "found.npz", arr_0=by_diffusers(place / "one", pictures(COUNT, 0, 64)))
    calc = ("calc", tmp_path / "found.npz", "--ref", "digits", "--metrics", "fid", "--json", tmp_path / "calc.json")
    assert evaluate(monkeypatch, capsys, *calc)[0] == 0
    expected = json.loads((tmp_path / "calc.json").read_text())["metrics"]["fid-digits"]
    assert number["value"] == pytest.approx(expected["value"], rel=1e-3)
    assert number["error"] == pytest.approx(expected["error"], rel=1e-2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--vae", "{place}/one", "--metrics", "fid"), "--metrics fid: no such metric of reconstructions; choose from rfid"),
        (("--vae", "{place}/one", "--metrics", ","), "--metrics names none"),
        (("--vae", "{place}/nowhere/x"), "--vae {place}/nowhere/x: no such folder"),
        (("--vae", "{place}/one", "--seed", "1"), "--seed 1: without --posterior sample nothing is drawn"),
        (("--vae", "pixels", "--posterior", "sample"), "are no distribution to draw from"),
        (("--vae", "{place}/one", "--precision", "tf32"), "--precision tf32: needs a GPU"),
        (("--vae", "{place}/one", "--metrics", "psnr", "--ref", "digits"), "--ref digits: only rfid takes it"),
        (("--vae", "{place}/one", "--metrics", "psnr", "--weights", "alexnet=x"), "--weights alexnet=x"),
        (("--vae", "{place}/one", "--extractor", "digits,dinov2"), "--extractor: reconstruct takes one, and 2 are named"),
        (("--vae", "{place}/one", "--image-size", "30"), "--image-size 30 crops files of images, not an npz"),
        (("--vae", "{place}/one", "--json", "{place}/no/r.json"), "cannot be written: there is no folder"),
    ],
)
def test_mistakes_are_told_in_a_sentence_before_anything_is_computed(given, said, place, monkeypatch, capsys):
    words = [word.format(place=place) for word in given]
    monkeypatch.setattr(Roundtrip, "__call__", lambda *_: pytest.fail("something was computed"))
    code, _, err = run(monkeypatch, capsys, place / "images.npz", *words)
    assert code == 2
    assert said.format(place=place) in err
    assert "Traceback" not in err


def test_sizes_that_a_codec_does_not_take_are_told(tmp_path, place, monkeypatch, capsys):
    np.savez(tmp_path / "odd.npz", arr_0=pictures(3, 0, 30))
    code, _, err = run(monkeypatch, capsys, tmp_path / "odd.npz", "--vae", place / "one", "--metrics", "psnr")
    assert (code, "takes images whose sides are multiples of 4, and these are 30 x 30" in err) == (2, True)
    np.savez(tmp_path / "small.npz", arr_0=pictures(3, 0, 8))
    code, _, err = run(monkeypatch, capsys, tmp_path / "small.npz", "--vae", place / "one", "--metrics", "psnr,ssim")
    assert (code, "--metrics ssim: takes images of 11 pixels a side and more" in err) == (2, True)
