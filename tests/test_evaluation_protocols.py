"""The protocols of other extractors: what their numbers are called, against oracles; and what does not go together."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import DIGITS
from test_evaluation_cli import evaluate
from test_evaluation_dinov2 import forward, narrow, official, pil_prepared, positions
from test_evaluation_inception import clean_oracle

from fiducial.evaluation import features
from fiducial.evaluation.features import EXTRACTORS, WEIGHTS, dinov2, inception, parse_weights
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.metrics import METRICS, called
from fiducial.evaluation.protocols import PROTOCOLS
from scripts.stand_ins import pictures

COUNT = 12


@pytest.fixture
def images(tmp_path):
    """Two files of pictures, `a` and `b`."""
    for name, seed in (("a", 0), ("b", 1)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pictures(COUNT, seed))
    return tmp_path


@pytest.fixture
def state(monkeypatch):
    monkeypatch.setattr(dinov2, "bare", narrow)
    return official(narrow())


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance of features by eigenvalues."""
    product = np.cov(one, rowvar=False) @ np.cov(other, rowvar=False)
    roots = np.sqrt(np.maximum(scipy.linalg.eigvals(product).real, 0)).sum()
    traces = np.trace(np.cov(one, rowvar=False)) + np.trace(np.cov(other, rowvar=False))
    return float(((one.mean(0) - other.mean(0)) ** 2).sum() + traces - 2 * roots)


def test_fd_dinov2_from_images_to_a_number(images, state, monkeypatch, capsys):
    """A reference is made, and samples are compared with it; the same from features of the network written out in a test."""
    torch.save(state, images / "w.pth")
    weights = "--dinov2-weights", images / "w.pth", "--cache-dir", images / "cache"
    made = evaluate(monkeypatch, capsys, "ref", images / "b.npz", "--extractor", "dinov2", "--out", images / "r.npz", *weights)
    assert made[0] == 0, made[2]
    with np.load(images / "r.npz") as arrays:
        provenance = json.loads(str(arrays["provenance"]))
        assert arrays["mu"].shape == (1024,)
    assert provenance["extractor"] == "dinov2"
    for protocol, expected in (("dino", set()), ("adm", {"IS-DINOv2", "sFD-DINOv2"})):  # and too few for a curve
        given = "--ref", images / "r.npz", "--protocol", protocol, "--json", images / "r.json"
        code, out, err = evaluate(monkeypatch, capsys, "calc", images / "a.npz", *given, *weights)
        assert code == 0, err
        result = json.loads((images / "r.json").read_text())
        assert set(result["metrics"]) == {f"{name}-dinov2" for name in ("fd", "precision", "recall", "density", "coverage")}
        assert set(result["left_out"]) == expected | {"FD-infinity-DINOv2"}
    assert "FD-DINOv2" in out
    assert "FID" not in json.dumps(result["metrics"])
    assert "the extractor is dinov2, where adm's is inception" in result["metrics"]["fd-dinov2"]["deviations"]
    assert result["extractor"]["weights_sha256"] == provenance["weights_sha256"]
    assert "timm" in result["packages"]
    small = {**state, "pos_embed": positions(state["pos_embed"])}
    rows = [forward(small, pil_prepared(pictures(COUNT, seed))).numpy() for seed in (0, 1)]
    assert result["metrics"]["fd-dinov2"]["value"] == pytest.approx(distance(*rows), rel=1e-4)
    assert "This is not FD-DINOv2-50K" in out


def kernel_distance(one: np.ndarray, other: np.ndarray) -> float:
    """KID of all features, unbiased, as a double sum."""
    kernel = [[(x @ y.T / x.shape[1] + 1) ** 3 for y in (one, other)] for x in (one, other)]
    n = len(one)
    within = sum((kernel[i][i].sum() - np.trace(kernel[i][i])) / (n * (n - 1)) for i in (0, 1))
    return float(within - 2 * kernel[0][1].mean())


def test_clean_fid_and_kid(images, inception_weights, monkeypatch, capsys):
    """On features of images that PIL has resized; a subset is the whole, so that it does not matter how it is drawn."""
    given = "--ref", images / "b.npz", "--inception-weights", inception_weights, "--cache-dir", images / "cache"
    given += "--kid-subset-size", COUNT, "--json", images / "r.json"
    code, out, err = evaluate(monkeypatch, capsys, "calc", images / "a.npz", "--protocol", "clean", *given)
    assert code == 0, err
    metrics = json.loads((images / "r.json").read_text())["metrics"]
    labels = {"fid-clean": "FID-clean", "kid-clean": "KID-clean"}
    labels |= {f"{name}-clean": f"{name}-clean" for name in ("density", "coverage")}
    assert {key: metric["label"] for key, metric in metrics.items()} == labels
    network = inception.Inception(inception.load_inception(inception_weights))
    with torch.inference_mode():
        rows = [network(clean_oracle(pictures(COUNT, seed)))[0].double().numpy() for seed in (0, 1)]
    assert metrics["fid-clean"]["value"] == pytest.approx(distance(*rows), rel=1e-3)
    assert metrics["kid-clean"]["value"] == pytest.approx(kernel_distance(*rows), rel=1e-3)
    assert any("clean-fid's have none" in text for text in metrics["kid-clean"]["deviations"])
    assert "This is not FID-clean-50K" in out
    code, _, err = evaluate(monkeypatch, capsys, "calc", images / "a.npz", "--metrics", "fid", *given)
    assert code == 0, err
    plain = json.loads((images / "r.json").read_text())["metrics"]["fid"]["value"]
    assert abs(plain / metrics["fid-clean"]["value"] - 1) > 0.02  # the resize matters


MISTAKES = [
    ("calc {}/a.npz --ref {}/b.npz --protocol clean --extractor inception", "--protocol clean is of inception-clean"),
    ("calc {}/a.npz --ref {}/b.npz --protocol dino --extractor digits", "--protocol dino is of dinov2"),
    ("calc {}/a.npz --ref digits --protocol dino", "--protocol dino is of the extractor dinov2: "),
    ("calc {}/a.npz --ref digits --extractor dinov2", "was made with digits"),
    ("calc {}/a.npz --ref {}/adm.npz --protocol clean", "adm.npz was made with inception"),
    ("calc {}/a.npz --ref {}/adm.npz --extractor dinov2", "adm.npz was made with inception"),
    ("calc {}/a.npz --ref adm-imagenet-64 --protocol dino", "--ref adm-imagenet-64: was made with inception"),
    ("calc {}/a.npz --ref {}/plain.npz --protocol dino", "has 2048 features, but dinov2 gives 1024"),
    ("calc {}/a.npz --ref {}/b.npz --protocol dino --metrics is", "the extractor dinov2 has no logits, which IS needs"),
    ("calc {}/a.npz --ref {}/b.npz --protocol dino --metrics sfid", "no spatial features, which sFID needs"),
    ("calc {}/a.npz --ref {}/b.npz --protocol clean --metrics sfid", "no spatial features, which sFID needs"),
    ("calc {}/a.npz --ref {}/b.npz --protocol clean --dinov2-weights {}/w", "the extractor is inception-clean, which does not"),
    ("ref {}/a.npz --out {}/x.npz --dinov2-weights {}/w", "the extractor is inception, which does not take them"),
    ("calc {}/a.npz --ref {}/b.npz --weights dinov2={}/w", "--weights dinov2="),
    ("calc {}/a.npz --ref {}/b.npz --weights {}/w", "give NAME=FILE, where NAME is one of inception, dinov2"),
    ("calc {}/a.npz --ref {}/b.npz --weights inception=a,inception=b", "those of inception are given twice"),
    ("calc {}/a.npz --ref {}/b.npz --weights inception=a --inception-weights b", "give only one of them"),
    ("calc {}/a.npz --ref {}/b.npz --protocol dino --fp16-compat", "--fp16-compat"),
    ("calc {}/a.npz --ref {}/b.npz --protocol dino --dtype bfloat16", "the extractor dinov2 runs in float32 only"),
]


@pytest.mark.parametrize(("command", "said"), MISTAKES)
def test_what_does_not_fit_is_said_before_weights_are_loaded(command, said, images, mirror, monkeypatch, capsys):
    np.savez(images / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32), arr_0=pictures(2, 0))
    np.savez(images / "plain.npz", mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
    (images / "w").touch()
    monkeypatch.setattr(features.Weights, "find", lambda *_: pytest.fail("weights are loaded"))
    monkeypatch.setenv("FIDUCIAL_MIRROR", mirror.url)
    code, out, err = evaluate(monkeypatch, capsys, *command.replace("{}", str(images)).split())
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert said in err
    assert mirror.seen == []


def test_fetch_brings_dinov2(mirror, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FIDUCIAL_MIRROR", mirror.url)
    mirror.content["/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"] = (DIGITS / "reference.npz").read_bytes()
    WEIGHTS["inception"].kept_at(tmp_path).parent.mkdir()
    WEIGHTS["inception"].kept_at(tmp_path).touch()
    code, out, err = evaluate(monkeypatch, capsys, "fetch", "dinov2", "--cache-dir", tmp_path)
    assert code == 0, err
    assert WEIGHTS["dinov2"].kept_at(tmp_path).is_file()
    assert "dinov2_vitl14_pretrain.pth" in out


def test_every_protocol_has_words_for_every_extractor():
    for protocol in PROTOCOLS.values():
        for metric in METRICS:
            for name in EXTRACTORS:
                assert "{" not in protocol.definition(metric, name)


@pytest.mark.parametrize(
    ("suffix", "distance", "metric", "expected"),
    [
        ("", "FID", "fid", ("fid", "FID")),
        ("-digits", "FID", "fid", ("fid-digits", "FID-digits")),
        ("-clean", "FID", "kid", ("kid-clean", "KID-clean")),
        ("-DINOv2", "FD", "fid", ("fd-dinov2", "FD-DINOv2")),
        ("-DINOv2", "FD", "precision", ("precision-dinov2", "precision-DINOv2")),
    ],
)
def test_a_number_is_called_by_its_extractor(suffix, distance, metric, expected):
    extractor = Extractor("x", 1, "", torch.device("cpu"), None, None, suffix=suffix, distance=distance)
    assert called(metric, extractor) == expected


def test_weights_are_named(tmp_path):
    found = parse_weights([f"inception={tmp_path}/a=1,b.pth,dinov2=d"])
    assert found == {"inception": tmp_path / "a=1,b.pth", "dinov2": Path("d")}
    assert parse_weights(["dinov2=d"], inception=Path("i"), dinov2=None) == {"dinov2": Path("d"), "inception": Path("i")}
    assert parse_weights(None) == {}
