"""The Inception path against torch-fidelity itself, same weights on both sides, from image files to numbers."""

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from distributed import UserError
from evaluation.calc import Evaluator
from evaluation.features import load_extractor
from evaluation.statistics import BlockEntropy


def pictures(count: int, seed: int, size: int = 64) -> np.ndarray:
    """Smooth coloured blobs: unlike noise, they differ after Inception's resize."""
    random = np.random.default_rng(seed)
    small = torch.from_numpy(random.normal(0.5 + 0.1 * seed, 0.4, size=(count, 3, 5, 5)))
    large = torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 1)
    return (255 * large).to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A weights file in torch-fidelity's form, random but alive: its batch norms know the statistics of some pictures.

    At the default initialisation all features are near 0 and every Inception score is 1.
    """
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["logits_unbiased"])
    network.train()
    network(torch.from_numpy(pictures(8, 0)).permute(0, 3, 1, 2))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network(torch.from_numpy(np.concatenate([pictures(8, 0), pictures(8, 1)])).permute(0, 3, 1, 2))
    network.fc.weight.data *= 30
    network.fc.bias.data.normal_(0, 2)  # so that keeping it would show
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


def test_fid_and_is_agree_with_torch_fidelity(inception_weights, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        for index, pixels in enumerate(pictures(16, seed)):
            Image.fromarray(pixels).save(tmp_path / name / f"{index:03d}.png")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "a"),
        input2=str(tmp_path / "b"),
        fid=True,
        isc=True,
        isc_splits=1,
        cuda=False,
        verbose=False,
        cache=False,
        batch_size=8,
        feature_extractor_weights_path=str(inception_weights),
    )
    evaluator = Evaluator.prepare(str(tmp_path / "b"), extractor="inception", inception_weights=inception_weights, batch_size=7)
    result = evaluator.evaluate(tmp_path / "a")
    assert result.metrics["fid"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert result.metrics["is"].value == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert theirs["frechet_inception_distance"] > 1
    assert 1.5 < theirs["inception_score_mean"] < 16
    assert any("not FID-50K" in text for text in result.warnings)


def test_a_bias_kept_in_the_inception_score_would_show(inception_weights):
    extractor = load_extractor("inception", inception_weights, torch.device("cpu"))
    _, logits = extractor.apply(torch.from_numpy(pictures(8, 0)).permute(0, 3, 1, 2))
    bias = torch.load(inception_weights, weights_only=True)["fc.bias"]
    scores = []
    for rows in (logits, logits + bias):
        entropy = BlockEntropy(1008)
        entropy.update(rows.numpy())
        scores.append(np.exp(entropy.divergences()[0]))
    assert abs(scores[0] - scores[1]) > 1e-2 * scores[0]


@pytest.mark.parametrize("damage", ["absent", "cut", "other", "code"])
def test_unsuitable_weights_are_refused_in_a_sentence(damage, inception_weights, tmp_path):
    path = tmp_path / "weights.pth"
    if damage == "cut":
        path.write_bytes(inception_weights.read_bytes()[:100_000])
    elif damage == "other":
        torch.save({"weight": torch.zeros(1)}, path)
    elif damage == "code":
        torch.save({"weight": print}, path)
    with pytest.raises(UserError, match="--inception-weights") as error:
        load_extractor("inception", path, torch.device("cpu"))
    assert "\n" not in str(error.value)
