"""The DINOv2 extractor against its network written out here; and the file that its weights come in.

A network of one narrow block stands in for ViT-L/14, whose published weights are not at hand; its features are as many.
"""

import hashlib
import math
import os
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from fiducial import UserError
from fiducial.evaluation.features import EXTRACTORS, WEIGHTS, dinov2
from fiducial.evaluation.features.load import load_extractor
from scripts.stand_ins import pictures

WIDTH, HEADS = EXTRACTORS["dinov2"].dimension, 16


def narrow() -> VisionTransformer:
    """A Vision Transformer of DINOv2's kind, on the meta device."""
    with torch.device("meta"):
        return VisionTransformer(
            img_size=224,
            patch_size=14,
            embed_dim=WIDTH,
            depth=1,
            num_heads=HEADS,
            mlp_ratio=0.25,
            init_values=1e-5,
            num_classes=0,
        )


def official(network: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random but lively weights under the names of the published file."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} | {"mask_token": (1, WIDTH)}
    shapes["pos_embed"] = (1, 1 + 37 * 37, WIDTH)
    state = {}
    for name, shape in shapes.items():
        fan = math.prod(shape[1:]) if len(shape) > 1 and "token" not in name and name != "pos_embed" else 1
        state[name] = torch.randn(shape, generator=generator) / fan**0.5
    return state


@pytest.fixture(scope="module")
def state():
    return official(narrow())


@pytest.fixture(autouse=True)
def _narrow(request, monkeypatch):
    if "real" not in request.fixturenames:
        monkeypatch.setattr(dinov2, "bare", narrow)


@pytest.fixture
def weights(state, tmp_path):
    torch.save(state, tmp_path / "dinov2.pth")
    return tmp_path / "dinov2.pth"


def bicubic(grid: np.ndarray, size: int, step: float) -> np.ndarray:
    """(H, W, D) -> (size, size, D): Keys' kernel with a = -0.75, edges repeated; pixel i is at (i + 0.5) * step - 0.5."""

    def weight(x: float) -> float:
        x = abs(x)
        return (1.25 * x - 2.25) * x * x + 1 if x <= 1 else -0.75 * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0

    matrix = np.zeros((size, len(grid)))
    for i in range(size):
        position = (i + 0.5) * step - 0.5
        for neighbour in range(math.floor(position) - 1, math.floor(position) + 3):
            matrix[i, min(max(neighbour, 0), len(grid) - 1)] += weight(position - neighbour)
    return np.einsum("ik,jl,kld->ijd", matrix, matrix, grid)


def positions(embeddings: torch.Tensor, step: float = 37 / 16.1) -> torch.Tensor:
    grid = embeddings[0, 1:].double().numpy().reshape(37, 37, -1)
    small = torch.from_numpy(bicubic(grid, 16, step)).reshape(1, 256, -1)
    return torch.cat([embeddings[:, :1].double(), small], 1)


def test_positions_are_resampled_as_in_the_official_code(state):
    embeddings = state["pos_embed"]
    found = dinov2.interpolate_positions(embeddings)
    torch.testing.assert_close(found.double(), positions(embeddings), rtol=0, atol=1e-4)
    timms = resample_abs_pos_embed(embeddings, [16, 16])
    without_offset = positions(embeddings, 37 / 16)
    for wrong in (timms, without_offset):
        assert (wrong - found).abs().max() > 0.1


def forward(state: dict[str, torch.Tensor], images: torch.Tensor, eps: float = 1e-6, approximate: str = "none") -> torch.Tensor:
    """A Vision Transformer by its definition, in float64: (N, 3, 224, 224) prepared -> the class token (N, D)."""
    w = {name: tensor.double() for name, tensor in state.items()}

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    patches = images.double().unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    for number in range(sum(name.endswith("ls1.gamma") for name in w)):
        block = f"blocks.{number}"
        parts = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(2, (3, HEADS, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + w[f"{block}.ls1.gamma"] * linear(mixed.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"), approximate=approximate)
        x = x + w[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 0]


def pil_prepared(pixels: np.ndarray) -> torch.Tensor:
    """EDM2's preprocessing with PIL's resize of single channels in the place of torch's."""
    channels = [[Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)] for image in pixels]
    resized = [[np.asarray(channel.resize((224, 224), Image.Resampling.BICUBIC)) for channel in image] for image in channels]
    mean, std = (np.array(values).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return torch.from_numpy((np.array(resized, np.float64) / 255 - mean) / std)


@pytest.mark.parametrize("size", [64, 224, 256, 512])
def test_images_are_prepared_as_edm2_does(size):
    blocks = 255 * np.random.default_rng(0).integers(0, 2, (2, 8, 8, 3), dtype=np.uint8)
    pixels = blocks.repeat(size // 8, 1).repeat(size // 8, 2)
    found = dinov2.prepare(torch.from_numpy(pixels).permute(0, 3, 1, 2)).double()
    expected = pil_prepared(pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    if size != 224:
        sharp = F.interpolate(torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), size=(224, 224), mode="bicubic") / 255
        red = found[:, 0] * 0.229 + 0.485
        assert (red - sharp[:, 0]).abs().max() > 0.01  # without antialias
        assert red.min() < -1e-3  # nor are they clipped


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def test_features_are_the_class_token(state, weights, alone):
    pixels = pictures(3, 0, 256)
    extractor = load_extractor("dinov2", {"dinov2": weights}, alone)
    with torch.inference_mode():
        found, spatial = extractor.run(pixels)
    assert spatial is None
    assert found.dtype == torch.float32
    prepared = pil_prepared(pixels)
    small = {**state, "pos_embed": positions(state["pos_embed"])}
    assert difference(found.double(), forward(small, prepared)) < 1e-5
    wrong = {
        "positions of timm": forward({**state, "pos_embed": resample_abs_pos_embed(state["pos_embed"], [16, 16])}, prepared),
        "no layer scale": forward({**small, **{f"blocks.0.ls{n}.gamma": torch.ones(WIDTH) for n in (1, 2)}}, prepared),
        "an epsilon of 1e-2": forward(small, prepared, eps=1e-2),
        "another GELU": forward(small, prepared, approximate="tanh"),
        "other pixels": forward(small, prepared * 0.226 / 0.229),
    }
    for name, features in wrong.items():
        assert difference(found.double(), features) > 3e-5, name


@pytest.mark.parametrize("form", ["timm.pth", "timm.safetensors", "official.safetensors"])
def test_weights_are_known_under_both_names(form, state, weights, tmp_path, alone):
    path = tmp_path / form
    kept = {name: tensor for name, tensor in state.items() if name != "mask_token" or form.startswith("official")}
    (save_file if form.endswith("safetensors") else torch.save)(kept, path)
    one, other = (load_extractor("dinov2", {"dinov2": file}, alone) for file in (weights, path))
    with torch.inference_mode():
        assert torch.equal(one.run(pictures(1, 0))[0], other.run(pictures(1, 0))[0])
    assert other.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != one.weights_sha256


@pytest.fixture
def real():
    """The network as it is."""


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("form", ["official", "timm"])
def test_the_published_shapes_are_vit_l_14s(form, tmp_path):
    """With one number in the place of each tensor, which a file of torch's needs no more room for."""
    shapes = {"cls_token": (1, 1, 1024), "pos_embed": (1, 1370, 1024), "norm.weight": (1024,), "norm.bias": (1024,)}
    shapes |= {"patch_embed.proj.weight": (1024, 3, 14, 14), "patch_embed.proj.bias": (1024,)}
    shapes |= {"mask_token": (1, 1024)} if form == "official" else {}
    for block in range(24):
        of_block = {"norm1.weight": 1024, "norm1.bias": 1024, "norm2.weight": 1024, "norm2.bias": 1024}
        of_block |= {"attn.qkv.bias": 3072, "attn.proj.bias": 1024, "mlp.fc1.bias": 4096, "mlp.fc2.bias": 1024}
        of_block |= {"ls1.gamma": 1024, "ls2.gamma": 1024}
        matrices = {"attn.qkv": (3072, 1024), "attn.proj": (1024, 1024), "mlp.fc1": (4096, 1024), "mlp.fc2": (1024, 4096)}
        shapes |= {f"blocks.{block}.{name}": (size,) for name, size in of_block.items()}
        shapes |= {f"blocks.{block}.{name}.weight": shape for name, shape in matrices.items()}
    torch.save({name: torch.full((1,), 0.01).expand(shape) for name, shape in shapes.items()}, tmp_path / "l.pth")
    network = dinov2.load_dinov2(tmp_path / "l.pth")
    assert sum(math.prod(tensor.shape) for tensor in network.state_dict().values()) == 303_227_904
    assert network.pos_embed.shape == (1, 257, 1024)
    assert {block.attn.num_heads for block in network.blocks} == {16}
    assert {module.eps for module in network.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}
    assert not network.training


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("damage", ["absent", "cut", "other", "code", "nan", "list", "shape", "small", "cut safetensors"])
def test_unsuitable_weights_are_refused_in_a_sentence(damage, state, weights, tmp_path, alone):
    path = tmp_path / ("weights.safetensors" if "safetensors" in damage else "weights.pth")
    if "cut" in damage:
        save_file(state, tmp_path / "whole.safetensors")
        whole = tmp_path / "whole.safetensors" if "safetensors" in damage else weights
        path.write_bytes(whole.read_bytes()[:100_000])
    elif damage == "other":
        torch.save({"weight": torch.zeros(1)}, path)
    elif damage == "code":
        torch.save({"weight": Code(tmp_path / "was run")}, path)
    elif damage == "nan":
        torch.save(state | {"norm.bias": state["norm.bias"] * torch.nan}, path)
    elif damage == "list":
        torch.save([torch.zeros(1)], path)
    elif damage == "shape":
        torch.save(state | {"norm.bias": torch.zeros(3)}, path)
    elif damage == "small":  # someone has resampled the positions already, who knows how
        torch.save(state | {"pos_embed": state["pos_embed"][:, :257]}, path)
    with pytest.raises(UserError, match="--weights dinov2=") as error:
        load_extractor("dinov2", {"dinov2": path}, alone)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "was run").exists()


@pytest.mark.usefixtures("real")
def test_timm_downloads_nothing(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something is asked of a network"))
    assert dinov2.bare().num_features == WIDTH


@pytest.fixture
def published(mirror, monkeypatch, tmp_path):
    """A server in the place of the one that has the published file; torch's hub cache is empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setenv("FIDUCIAL_MIRROR", mirror.url)
    return mirror, WEIGHTS["dinov2"].url.removeprefix("https://dl.fbaipublicfiles.com")


@pytest.mark.parametrize("given", [True, False], ids=["--cache-dir", "torch's hub cache"])
def test_published_weights_are_fetched_once(given, published, weights, tmp_path, alone):
    mirror, path = published
    cache_dir = tmp_path / "cache" if given else None
    mirror.content[path] = weights.read_bytes()
    weights.unlink()
    for _ in range(2):
        extractor = load_extractor("dinov2", None, alone, cache_dir=cache_dir)
    assert extractor.weights_sha256 == hashlib.sha256(mirror.content[path]).hexdigest()
    assert len(mirror.seen) == 1
    kept = tmp_path / ("cache" if given else "torch") / "checkpoints" / "dinov2_vitl14_pretrain.pth"
    assert list(tmp_path.rglob("*.pth")) == [kept]


@pytest.mark.usefixtures("published")
def test_without_a_network_the_error_says_where_to_put_the_file(tmp_path, alone):
    with pytest.raises(
        UserError, match=rf"Not Found.*put it at {tmp_path}/torch/checkpoints/dinov2.*, or give it as --weights dinov2=FILE"
    ):
        load_extractor("dinov2", None, alone)


@pytest.mark.usefixtures("real")
def test_without_timm_the_error_says_so(weights, alone, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="the extractor dinov2 needs timm; pip install timm"):
        load_extractor("dinov2", {"dinov2": weights}, alone)
