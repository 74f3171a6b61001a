"""Benchmarks of evaluating for scripts/benchmark.py: ours, torch-fidelity, pytorch-fid and scipy, as they come."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np

from scripts.benchmark_work import Measured, Work, memory_above, seconds

DIMENSION = 2048


def extract_ours(work: Work, dtype: str) -> Measured:
    import fiducial
    from fiducial.evaluation.data.opening import open_images
    from fiducial.evaluation.features.extraction import extract
    from fiducial.evaluation.features.load import load_extractor

    group = fiducial.init("cpu")
    extractor = load_extractor("inception", {"inception": work.weights}, group, dtype)
    with tempfile.TemporaryDirectory() as cache:
        return seconds(lambda: extract(open_images(work.folder / "a"), extractor, group, 64, Path(cache)))


def extract_six(work: Work, passes: int) -> Measured:
    """Features by six tiny networks of timm's with random weights, in one pass over the images or in one for each."""
    import timm
    import torch

    import fiducial
    from fiducial.evaluation.data.opening import open_images
    from fiducial.evaluation.features.extraction import extract_each
    from fiducial.evaluation.features.load import load_extractor

    group, extractors = fiducial.init("cpu"), []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("test_resnet", "test_vit", "test_vit2", "test_vit3", "test_convnext", "test_efficientnet"):
            file = Path(folder) / f"{name}.pth"
            torch.save(timm.create_model(name, pretrained=False).state_dict(), file)
            extractors.append(load_extractor(f"timm:{name}", {f"timm:{name}": file}, group))
        parts = [extractors] if passes == 1 else [[one] for one in extractors]
        cache = Path(folder) / "cache"
        return seconds(lambda: [extract_each(open_images(work.folder / "a"), part, group, 64, cache) for part in parts])


def extract_torch_fidelity(work: Work) -> Measured:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.utils import extract_featuresdict_from_input_id

    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=work.weights)
    return seconds(
        lambda: extract_featuresdict_from_input_id(1, network, input1=str(work.folder / "a"), cuda=False, verbose=False)
    )


def extract_pytorch_fid(work: Work) -> Measured:
    import torch
    from pytorch_fid import fid_score, inception

    inception.load_state_dict_from_url = lambda *_, **__: torch.load(work.weights, weights_only=True)
    network = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[DIMENSION]])
    return seconds(lambda: fid_score.get_activations(sorted((work.folder / "a").iterdir()), network))


def covariances() -> tuple[np.ndarray, np.ndarray, float]:
    """Two commuting covariances (2048, 2048) with decaying spectra, and the trace of the root of their product."""
    random = np.random.default_rng(0)
    rotation = np.linalg.qr(random.normal(size=(DIMENSION, DIMENSION)))[0]
    a, b = (np.logspace(0, -6, DIMENSION) * random.uniform(0.5, 2, DIMENSION) for _ in range(2))
    s1, s2 = ((rotation * values) @ rotation.T for values in (a, b))
    return s1, s2, float(((np.sqrt(a) - np.sqrt(b)) ** 2).sum())


def fid_ours(_: Work) -> Measured:
    from fiducial.evaluation.metrics.gaussians import frechet_distance

    s1, s2, expected = covariances()
    mean, found = np.zeros(DIMENSION), []
    measured = seconds(lambda: found.append(frechet_distance(mean, s1, mean, s2)))
    return measured | {"relative_error": abs(found[0] - expected) / expected}


def fid_scipy(_: Work) -> Measured:
    from scipy.linalg import sqrtm

    s1, s2, expected = covariances()
    found = []
    measured = seconds(lambda: found.append(np.trace(s1 + s2) - 2 * np.trace(sqrtm(s1 @ s2).real)))
    return measured | {"relative_error": abs(found[0] - expected) / expected}


def features(count: int, seed: int) -> np.ndarray:
    """Non-negative, as pool3 is."""
    random = np.random.default_rng(seed)
    return np.abs(random.normal(0.4 + 0.01 * seed, 0.3, size=(count, DIMENSION)).astype(np.float32))


def precision_recall_ours(work: Work) -> Measured:
    import fiducial
    from fiducial.evaluation.metrics.neighbours import neighbourhoods

    group, reference, samples = fiducial.init("cpu"), features(work.reference, 0), features(work.samples, 1)
    return memory_above(lambda: seconds(lambda: neighbourhoods(reference, samples, group)))


def precision_recall_torch_fidelity(work: Work) -> Measured:
    import torch
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    reference, samples = (torch.from_numpy(features(count, seed)) for count, seed in ((work.reference, 0), (work.samples, 1)))
    return memory_above(lambda: seconds(lambda: calculate_precision_recall_full(samples, reference)))


def everything_ours(work: Work) -> Measured:
    from fiducial.evaluation.__main__ import build_parser, run

    arguments = ["calc", "a", "--ref", "b", "--protocol", "torch-fidelity", "--kid-subset-size", str(work.images)]
    options = ["--inception-weights", work.weights, "--no-cache", "--json", "ours.json"]
    os.chdir(work.folder)
    run(build_parser().parse_args([*arguments, *options]))
    return {"fid": json.loads(Path("ours.json").read_text())["metrics"]["fid"]["value"]}


def everything_torch_fidelity(work: Work) -> Measured:
    import torch_fidelity

    found = torch_fidelity.calculate_metrics(
        **{"input1": str(work.folder / "a"), "input2": str(work.folder / "b"), "kid_subset_size": work.images},
        **{"isc": True, "fid": True, "kid": True, "prc": True, "cuda": False, "cache": False, "verbose": False},
        **{"feature_extractor": "inception-v3-compat", "feature_extractor_weights_path": work.weights},
    )
    return {"fid": found["frechet_inception_distance"]}
