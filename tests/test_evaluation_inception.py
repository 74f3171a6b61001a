"""The Inception network against torch-fidelity's, same weights on both sides; and the file that its weights come in."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from fiducial import UserError
from fiducial.evaluation.features import EXTRACTORS, INCEPTION, inception
from fiducial.evaluation.features.load import load_extractor
from scripts.stand_ins import pictures

NAMES = ("pool3", "spatial", "logits")


def theirs(weights, images) -> dict[str, torch.Tensor]:
    """torch-fidelity's outputs, the spatial ones by a hook on the convolution that ADM takes them from."""
    network = fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    caught = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, output: caught.append(output))
    with torch.inference_mode():
        pool, logits = network(images)
    spatial = caught[0][:, :7].numpy().transpose(0, 2, 3, 1).reshape(len(images), 2023)
    return dict(zip(NAMES, (pool, torch.from_numpy(spatial.copy()), logits), strict=True))


def ours(weights, images, group, dtype: str = "float32") -> dict[str, torch.Tensor]:
    extractor = load_extractor("inception", {"inception": weights}, group, dtype)
    with torch.inference_mode():
        pool, spatial = extractor.apply(images)
        return dict(zip(NAMES, (pool, spatial, extractor.logits(pool)), strict=True))


def difference(one: dict, other: dict) -> dict[str, float]:
    """Largest difference of each output, relative to its largest value."""
    return {name: float((one[name] - other[name]).abs().max() / other[name].abs().max()) for name in NAMES}


def tensor(size: int, count: int = 5) -> torch.Tensor:
    return torch.from_numpy(pictures(count, 1, size)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [64, 256, 299, 400])
def test_all_outputs_are_torch_fidelitys(size, inception_weights, alone):
    images = tensor(size)
    found = difference(ours(inception_weights, images, alone), theirs(inception_weights, images.contiguous()))
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("wrong", ["half-pixel resize", "padding counted in the average pool", "C, H, W", "bias", "unfolded eps"])
def test_a_wrong_network_would_show(wrong, inception_weights, alone, monkeypatch):
    images = tensor(64)
    expected = theirs(inception_weights, images.contiguous())
    if wrong == "half-pixel resize":
        monkeypatch.setitem(inception.PREPARED, "ADM", inception.PREPARED["pytorch-fid"])
    elif wrong == "padding counted in the average pool":
        average = F.avg_pool2d
        monkeypatch.setattr(F, "avg_pool2d", lambda *args, **options: average(*args, **options | {"count_include_pad": True}))
    elif wrong == "unfolded eps":
        fuse = inception.fuse_conv_bn_eval

        def other(conv, norm):
            norm.eps = 1e-5  # torch's default, not TensorFlow's 1e-3
            return fuse(conv, norm)

        monkeypatch.setattr(inception, "fuse_conv_bn_eval", other)
    found = ours(inception_weights, images, alone)
    if wrong == "C, H, W":
        found["spatial"] = found["spatial"].reshape(-1, 17, 17, 7).permute(0, 3, 1, 2).flatten(1)
    elif wrong == "bias":
        found["logits"] = found["logits"] + torch.load(inception_weights, weights_only=True)["fc.bias"]
    assert max(difference(found, expected).values()) > 1e-3


def tf1_resize_oracle(image, size):
    """TensorFlow 1's resize_bilinear by its definition, one output pixel at a time; (H, W) -> (size, size)."""
    height, width = image.shape
    result = torch.zeros(size, size)
    for i in range(size):
        for j in range(size):
            y, x = i * (height / size), j * (width / size)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
            lower = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
            result[i, j] = upper + (lower - upper) * (y - top)
    return result


@pytest.mark.parametrize("shape", [(7, 11), (31, 13)])
def test_the_resize_is_tensorflows(shape, monkeypatch):
    monkeypatch.setattr(inception, "RESOLUTION", 19)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 255
    expected = tf1_resize_oracle(image, 19)
    assert (inception.tensorflow_resize(image[None, None])[0, 0] - expected).abs().max() < 1e-3
    assert (F.interpolate(image[None, None], size=(19, 19), mode="bilinear")[0, 0] - expected).abs().max() > 1


def clean_oracle(pixels: np.ndarray, clip: bool = True) -> torch.Tensor:
    """clean-fid's resize: each channel by PIL in mode F. (N, H, W, 3) uint8 -> (N, 3, 299, 299)."""
    resized = [
        [np.asarray(Image.fromarray(image[..., c].astype(np.float32)).resize((299, 299), Image.BICUBIC)) for c in range(3)]
        for image in pixels
    ]
    return torch.from_numpy(np.array(resized).clip(0, 255) if clip else np.array(resized))


@pytest.mark.parametrize("size", [64, 256, 299, 512])
def test_the_clean_resize_is_pils(size):
    """On squares of black and white, at whose edges a bicubic resize overshoots."""
    squares = 255 * np.random.default_rng(0).integers(0, 2, (2, 8, 8, 3), dtype=np.uint8)
    pixels = squares.repeat(-(-size // 8), 1).repeat(-(-size // 8), 2)[:, :size, :size].copy()
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    found, expected = inception.clean_resize(images), clean_oracle(pixels)
    assert (found - expected).abs().max() < 1e-2
    if size == 299:
        assert torch.equal(found, images)
        return
    without_antialias = F.interpolate(images, size=(299, 299), mode="bicubic").clamp(0, 255)
    for wrong in (clean_oracle(pixels, clip=False), expected.round(), without_antialias, inception.tensorflow_resize(images)):
        assert (found - wrong).abs().max() > 0.3


def test_the_clean_features_are_those_of_images_resized_before(inception_weights, alone):
    """The network on what PIL made of the images, which has their size, so that nothing resizes it."""
    pixels = pictures(3, 1, 64)
    network = inception.Inception(inception.load_inception(inception_weights))
    with torch.inference_mode():
        expected, _ = network(clean_oracle(pixels))
        found, spatial = load_extractor("inception-clean", {"inception": inception_weights}, alone).run(pixels)
        tensorflows, _ = load_extractor("inception", {"inception": inception_weights}, alone).run(pixels)
    assert spatial is None
    assert (found - expected).abs().max() / expected.abs().max() < 1e-3
    assert (tensorflows - expected).abs().max() / expected.abs().max() > 1e-2


def test_bfloat16_is_near_but_not_equal(inception_weights, alone):
    images = tensor(64, count=2)
    half, full = (ours(inception_weights, images, alone, dtype)["pool3"] for dtype in ("bfloat16", "float32"))
    assert half.dtype == torch.float32
    assert 1e-5 < ((half - full).norm() / full.norm()) < 0.2  # random weights amplify roundings more than trained ones do


@pytest.mark.parametrize("damage", ["absent", "cut", "other", "code", "nan", "list"])
def test_unsuitable_weights_are_refused_in_a_sentence(damage, inception_weights, tmp_path, alone):
    path = tmp_path / "weights.pth"
    if damage == "cut":
        path.write_bytes(inception_weights.read_bytes()[:100_000])
    elif damage == "other":
        torch.save({"weight": torch.zeros(1)}, path)
    elif damage == "code":
        torch.save({"weight": print}, path)
    elif damage == "nan":
        state = torch.load(inception_weights, weights_only=True)
        torch.save(state | {"fc.weight": state["fc.weight"] * torch.nan}, path)
    elif damage == "list":
        torch.save([torch.zeros(1)], path)
    with pytest.raises(UserError, match="--weights inception=") as error:
        load_extractor("inception", {"inception": path}, alone)
    assert "\n" not in str(error.value)


@pytest.fixture
def published(mirror, monkeypatch, tmp_path):
    """A server in the place of the one that has the published file; torch's hub cache is empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setenv("FIDUCIAL_MIRROR", mirror.url)
    return mirror, INCEPTION.url.removeprefix("https://github.com")


@pytest.mark.parametrize("given", [True, False], ids=["--cache-dir", "torch's hub cache"])
def test_published_weights_are_fetched_once_and_checked(given, published, inception_weights, tmp_path, alone, monkeypatch):
    """The file goes where a person says, or where torch keeps such files, if its hash begins as it should."""
    mirror, path = published
    cache_dir = tmp_path / "cache" if given else None
    mirror.content[path] = inception_weights.read_bytes()
    with pytest.raises(UserError, match="not 6726825d"):
        load_extractor("inception", None, alone, cache_dir=cache_dir)
    assert not list(tmp_path.rglob("*.pth"))
    digest = hashlib.sha256(inception_weights.read_bytes()).hexdigest()
    publish(digest[:8], monkeypatch)
    for _ in range(2):
        extractor = load_extractor("inception", None, alone, cache_dir=cache_dir)
    assert extractor.weights_sha256 == digest
    assert extractor.as_published
    assert len(mirror.seen) == 2
    name = "weights-inception-2015-12-05-6726825d.pth"
    assert list(tmp_path.rglob("*.pth")) == [tmp_path / ("cache" if given else "torch") / "checkpoints" / name]
    assert not load_extractor_named_otherwise(inception_weights, alone, monkeypatch).as_published


def publish(digits: str, monkeypatch) -> None:
    """Has the published file be one whose hash begins so."""
    spec = replace(EXTRACTORS["inception"], weights=replace(INCEPTION, sha256=digits))
    monkeypatch.setitem(EXTRACTORS, "inception", spec)


def load_extractor_named_otherwise(weights, group, monkeypatch):
    publish("6726825d", monkeypatch)
    return load_extractor("inception", {"inception": weights}, group)


@pytest.mark.usefixtures("published")
def test_without_a_network_the_error_says_where_to_put_the_file(tmp_path, alone):
    with pytest.raises(UserError, match=rf"Not Found.*put it at {tmp_path}/torch/checkpoints/.*, or give it as --weights inc"):
        load_extractor("inception", None, alone)


@pytest.mark.parametrize("size", [64, pytest.param(400, marks=pytest.mark.long)])
def test_pytorch_fids_resize_scaling_and_blocks(size, inception_weights, alone, monkeypatch):
    """Against that package with the same weights, both in float64, where rounding hides nothing."""
    from pytorch_fid import inception as package

    monkeypatch.setattr(package, "load_state_dict_from_url", lambda *_, **__: torch.load(inception_weights, weights_only=True))
    pixels = pictures(3, 1, size)
    with torch.inference_mode():
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        theirs = package.InceptionV3([3]).eval().double()
        expected = theirs(images.double())[0].flatten(1).float()
        exact = inception.Inception(
            inception.load_inception(inception_weights), torch.float64, *inception.PREPARED["pytorch-fid"]
        )
        extractor = load_extractor("inception-pytorch-fid", {"inception": inception_weights}, alone)
        found, spatial = extractor.run(pixels)
        adms = load_extractor("inception", {"inception": inception_weights}, alone).run(pixels)[0]
        exactly = exact(images.double() * 255)[0]
    assert float((exactly - expected).norm() / expected.norm()) < 1e-5  # batch norm was folded in in float32
    assert float((found - expected).norm() / expected.norm()) < 1e-4  # theirs in float32 is off as far
    assert spatial is None
    assert float((adms - expected).norm() / expected.norm()) > 1e-3


def test_the_file_that_pytorch_fid_keeps_is_taken(tmp_path):
    """Both projects publish one file under names of their own; a hash of it is in either."""
    own, theirs = (tmp_path / "checkpoints" / name for name in (INCEPTION.url.rsplit("/", 1)[1], *INCEPTION.also_called))
    assert INCEPTION.kept_at(tmp_path) == own
    theirs.parent.mkdir()
    theirs.touch()
    assert INCEPTION.kept_at(tmp_path) == theirs
    own.touch()
    assert INCEPTION.kept_at(tmp_path) == own
    assert all(INCEPTION.sha256 in path.name for path in (own, theirs))
