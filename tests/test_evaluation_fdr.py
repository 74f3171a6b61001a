"""FDr6 and several networks in one pass over the images; timm's models as extractors, tiny ones in the place of large."""

import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from conftest import features
from safetensors.torch import load_file, save_file
from test_evaluation_cli import evaluate
from torchvision.transforms.functional import InterpolationMode, resize

from fiducial.evaluation.data import images as data
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.published import PUBLISHED
from fiducial.evaluation.data.references import Reference, open_reference
from fiducial.evaluation.features import EXTRACTORS, FDR6, Timm, parse_weights, spec_of
from fiducial.evaluation.features.extraction import extract, extract_each
from fiducial.evaluation.features.load import load_extractor
from fiducial.evaluation.metrics import fdr
from fiducial.evaluation.metrics.inputs import Inputs
from fiducial.evaluation.metrics.statistics import FeatureStatistics
from fiducial.evaluation.settings import Settings
from scripts.stand_ins import pictures, write_pngs

COUNT = 90
# In the place of FDr6's networks; the digits', which any machine has, in that of Inception.
TINY = {
    "convnextv2": Timm("test_convnext", 64, "mean", True),
    "dinov2-256": Timm("test_vit", 72, "head", True),
    "mae": Timm("test_vit2", 64, "head", True),
    "siglip2": Timm("test_vit3", 64, "head", True),
    "clip": Timm("test_vit4", 72, "head", True),
}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The six networks, small ones with random weights; the options that name the weights' files."""
    given = []
    for name, how in TINY.items():
        torch.manual_seed(len(given))
        network = timm.create_model(how.model, pretrained=False)  # with its classifier, as published files have it
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
        row = replace(EXTRACTORS[name], timm=how, dimension=spec_of(f"timm:{how.model}").dimension)
        monkeypatch.setitem(EXTRACTORS, name, row)
        given += ["--weights", f"{name}={tmp_path / name}.safetensors"]
    monkeypatch.setitem(EXTRACTORS, "inception", replace(EXTRACTORS["digits"], name="inception", suffix="", comparable=True))
    for seed, name in enumerate("ab"):
        write_pngs(tmp_path / name, pictures(COUNT, seed))
    return [*given, "--cache-dir", tmp_path / "cache"]


def calc(folder, monkeypatch, capsys, *options) -> tuple[dict, str]:
    """The result of `a` in JSON, and the table."""
    given = "calc", folder / "a", "--json", folder / "r.json", *options
    code, out, err = evaluate(monkeypatch, capsys, *given)
    assert code == 0, err
    return json.loads((folder / "r.json").read_text()), out


def test_fdr6_from_images_and_from_files_of_statistics(small, tmp_path, monkeypatch, capsys):
    result, out = calc(tmp_path, monkeypatch, capsys, "--ref", tmp_path / "b", "--metrics", "fdr6", *small)
    keys = {name: f"fd-{name}" for name in FDR6} | {"inception": "fid", "convnextv2": "fd-convnext"}
    found = {name: result["metrics"][key]["value"] for name, key in keys.items()}
    fdr6 = result["metrics"]["fdr6"]
    assert fdr6["value"] == pytest.approx(sum(found[name] / FDR6[name] for name in FDR6) / 6)
    assert "inception / 1.68, convnextv2 / 56.87, dinov2-256 / 14.19, mae / 0.04, siglip2 / 0.6, clip / 5.6" in fdr6["definition"]
    assert f"over 0.04 it is {found['mae'] / 0.04:.4g}" in result["metrics"]["fd-mae"]["definition"]
    assert "not known to be ADM's" in " ".join(fdr6["deviations"])
    assert [one["name"] for one in result["extractor"]["panel"]] == [*FDR6][1:]
    assert result["packages"]["timm"] == timm.__version__
    assert "This is not FDr6-50K" in out
    made = "ref", tmp_path / "b", "--extractor", "fdr6", "--out", tmp_path / "refs", *small
    assert evaluate(monkeypatch, capsys, *made)[0] == 0
    written = {path.name for path in (tmp_path / "refs").iterdir()}
    assert written == {f"{name}{ending}" for name in FDR6 for ending in (".npz", ".pictures.npz")}
    again, _ = calc(tmp_path, monkeypatch, capsys, "--ref", tmp_path / "refs", "--metrics", "fdr6,f-score,mind", *small)
    assert again["metrics"]["fdr6"]["value"] == pytest.approx(fdr6["value"], rel=1e-9)
    one, _ = calc(
        tmp_path,
        monkeypatch,
        capsys,
        "--ref",
        tmp_path / "refs",
        "--extractor",
        "mae",
        "--metrics",
        "fid",
        *small[4:6],
        *small[-2:],
    )
    assert one["metrics"]["fd-mae"]["value"] == pytest.approx(found["mae"], rel=1e-9)
    (tmp_path / "refs" / "clip.npz").unlink()
    code, _, err = evaluate(monkeypatch, capsys, "calc", tmp_path / "a", "--ref", tmp_path / "refs", "--metrics", "fdr6", *small)
    assert (code, "has references of inception, convnextv2" in err, "and none of clip" in err) == (2, True, True)


def test_six_networks_in_one_pass_decode_each_image_once(small, tmp_path, alone, monkeypatch):
    weights = parse_weights(small[1:-2:2])
    networks = [load_extractor(name, weights, alone) for name in FDR6]
    singly = [extract(open_images(tmp_path / "a"), one, alone, 16, tmp_path / "single").rows.copy() for one in networks]
    decoded, read = [], data.read_image
    monkeypatch.setattr(data, "read_image", lambda *given: decoded.append(given) or read(*given))
    extract(open_images(tmp_path / "a"), networks[2], alone, 16, tmp_path / "cache")
    together = extract_each(open_images(tmp_path / "a"), networks, alone, 16, tmp_path / "cache")
    assert [one.origin for one in together] == ["computed"] * 2 + ["from the cache"] + ["computed"] * 3
    assert len(decoded) == 2 * COUNT
    assert all(np.array_equal(one.rows, row) for one, row in zip(together, singly, strict=True))
    assert len({one.pixels_sha256 for one in together}) == 1


class Seen:
    """Features as metrics take them."""

    def __init__(self, rows: np.ndarray):
        self.rows, self.statistics = rows, FeatureStatistics.empty(rows.shape[1])
        self.statistics.update(rows)
        self.statistics.flush()


def panel(sides: list[np.ndarray], alone) -> Inputs:
    """Six networks' features of the same samples, against what is the same for all."""
    statistics = Seen(features(400, 3, 6)).statistics
    reference = Reference(None, None, "images", statistics.mean, statistics.covariance)
    extractors = [SimpleNamespace(name=name) for name in FDR6]
    inputs = [Inputs(Seen(rows), reference, one, Settings(), alone) for rows, one in zip(sides, extractors, strict=True)]
    return replace(inputs[0], panel=tuple(inputs[1:]))


def test_the_error_of_fdr6_knows_that_the_six_are_of_the_same_samples(alone):
    """Of equal features errors add up, of independent ones their squares do."""
    same, different = [features(300, 0, 6)] * 6, [features(300, seed, 6) for seed in range(6)]
    for sides, add in ((same, sum), (different, lambda errors: sum(error**2 for error in errors) ** 0.5)):
        inputs = panel(sides, alone)
        errors = [found.error / FDR6[name] for name, found in fdr.distances(inputs).items()]
        assert fdr.fdr6(inputs).error == pytest.approx(add(errors) / 6, rel=1e-6 if sides is same else 0.15)


def test_a_model_of_timms_is_an_extractor_prepared_and_pooled_as_timm_says(tmp_path, alone):
    torch.manual_seed(0)
    network = timm.create_model("test_vit", pretrained=False).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    with torch.inference_mode():
        extractor = load_extractor("timm:test_vit", {"timm:test_vit": tmp_path / "w.pth"}, alone)
        found = extractor.run(pictures(5, 0, 100))[0]
        x = torch.from_numpy(pictures(5, 0, 100)).permute(0, 3, 1, 2) / 255
        x = resize(x, [160, 160], InterpolationMode.BICUBIC, antialias=True)
        token = network.forward_features((x - 0.5) / 0.5)[:, 0]
    assert torch.allclose(found, network.fc_norm(token), rtol=1e-4, atol=1e-5)
    assert (extractor.suffix, extractor.distance, extractor.dimension) == ("-test_vit.r160_in1k", "FD", 64)
    config = {"model": "test_vit.r160_in1k", "input": [160, 160], "mean": [0.5] * 3, "std": [0.5] * 3}
    assert extractor.preparation == config | {"interpolation": "bicubic", "pooling": "head", "autocast": None}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("calc {0}/a --ref {0}/b --extractor timm:nope", "has no such model"),
        ("calc {0}/a --ref {0}/b --extractor nope", "there is no extractor 'nope'; choose from inception"),
        ("calc {0}/a --ref {0}/b --extractor digits,mae", "calc takes one, and 2 are named"),
        ("ref {0}/a --extractor mae,mae --out {0}/x", "mae is named twice"),
        ("ref {0}/a --extractor fdr6 --out {0}/x.npz", "several extractors make a file each, in a folder"),
        (
            "ref {0}/a --extractor timm:test_vit --weights timm:test_vit={0}/mae.safetensors --out {0}/x.npz",
            "names or shapes differ",
        ),
        ("calc {0}/a --ref {0}/b --extractor digits --metrics fdr6", "its first network is inception, with ADM's resize"),
    ],
)
@pytest.mark.usefixtures("small")
def test_mistakes(given, said, tmp_path, monkeypatch, capsys):
    words = given.format(tmp_path).split()
    code, _, err = evaluate(monkeypatch, capsys, *words, "--cache-dir", tmp_path / "cache")
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("small")
def test_features_of_fdr6_are_the_papers(alone, tmp_path):
    """The spatial mean without the head's norm, where ConvNeXt has one; positions resampled and patches filled up, where a ViT is
    given another size than its own; in bfloat16."""
    images = torch.from_numpy(pictures(3, 0, 64)).permute(0, 3, 1, 2)
    for name, own in (("convnextv2", lambda x: x.mean((2, 3))), ("dinov2-256", lambda x: x[:, 0])):
        how, path = TINY[name], tmp_path / f"{name}.safetensors"
        more = {} if how.pooling == "mean" else {"dynamic_img_size": True, "dynamic_img_pad": True}
        network = timm.create_model(how.model, pretrained=False, **more).eval()
        network.load_state_dict(load_file(path))
        x = resize(images / 255, [how.size] * 2, InterpolationMode.BICUBIC, antialias=True)
        with torch.inference_mode():
            expected = own(network.forward_features((x - 0.5) / 0.5))
            found = load_extractor(name, {name: path}, alone).apply(images)[0]
        error = float((found - expected).norm() / expected.norm())
        assert 1e-4 < error < 0.02, name


def test_one_published_file_has_the_statistics_of_all_six(tmp_path):
    files = {
        "inception": "guided_diffusion",  # ADM's
        "convnextv2": "convnext_in256_t224",
        "dinov2-256": "vit_large_patch14_dinov2_lvd142m_in256_t256",
        "mae": "vit_large_patch16_224_mae_in256_t224",
        "siglip2": "vit_so400m_patch16_siglip_256_v2_webli_in256_t224",
        "clip": "vit_large_patch14_clip_224_openai_in256_t256",
    }
    named = {name: f"{file}_stats.npz" for name, file in files.items()}
    content = {}
    for number, called in enumerate(named.values()):
        rows = features(20, number, 4)
        content[called] = {"mu": rows.mean(0, dtype=np.float64), "sigma": np.cov(rows, rowvar=False), "avg_mu": rows[0]}
    (tmp_path / "stats.pkl").write_bytes(pickle.dumps(content))
    assert set(named) == set(FDR6) == set(PUBLISHED["fd-loss-imagenet-256"].extractors)
    for name, called in named.items():
        found = open_reference(tmp_path / "stats.pkl", extractor=name)
        assert (found.kind, found.provenance.extractor) == ("FD-loss's statistics", name)
        assert np.array_equal(found.mu, content[called]["mu"])
