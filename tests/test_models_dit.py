"""DiT against diffusers' own, and the guidance against two plain forward calls."""

import pytest
import torch
import torch.nn.functional as F
from conftest import randomised
from formats import diffusers_twin

from fiducial.models import DiT, DiT_models
from fiducial.models.networks import dit

CLASSES = 10
FLOAT32, FLOAT64 = 1e-5, 1e-10  # of the output's magnitude

OFFICIAL = {"norm_eps": 1e-6, "frequency_shift": 0}  # what makes diffusers' network the official one


@torch.no_grad()
def disagreement(network, input_size, dtype=torch.float32, **deviations):
    """The largest difference between network and twin, relative to the largest output."""
    twin = diffusers_twin(network, **OFFICIAL | deviations).to(dtype)
    return difference(network.to(dtype), twin, input_size, dtype)


@torch.no_grad()
def difference(network, twin, input_size, dtype):
    x = torch.randn(3, network.in_channels, input_size, input_size, generator=torch.Generator().manual_seed(1)).to(dtype)
    t, y = torch.tensor([0, 371, 999]), torch.tensor([0, 7, network.null_label])
    expected = twin(x, t, y).sample
    return ((network(x, t, y) - expected).abs().max() / expected.abs().max()).item()


LARGE = pytest.param("DiT-L/8", 16, marks=pytest.mark.long)


@pytest.mark.parametrize(("model", "input_size"), [("DiT-XS/8", 24), ("DiT-S/2", 8), ("DiT-B/4", 12), LARGE])
def test_agrees_with_diffusers(model, input_size):
    network = randomised(DiT_models[model](input_size=input_size, num_classes=CLASSES))
    assert disagreement(network, input_size) < FLOAT32


@pytest.mark.parametrize(("hidden_size", "heads"), [(1024, 16), (1152, 16)], ids=["L", "XL"])
def test_widths_of_large_models_agree_with_diffusers(hidden_size, heads):
    """Two blocks are enough for what only these have: their width and size of a head."""
    shape = {"input_size": 8, "patch_size": 4, "hidden_size": hidden_size, "depth": 2, "num_heads": heads}
    assert disagreement(randomised(DiT(num_classes=CLASSES, **shape)), 8) < FLOAT32


@pytest.mark.parametrize("at_once", [1, 2 * 3 * 16**2, 1 << 23], ids=["image by image", "in two parts", "at once"])
def test_attention_by_products_is_attention(at_once, monkeypatch):
    monkeypatch.setattr(dit, "SCORES_AT_ONCE", at_once)
    q, k, v = 2 * torch.randn(3, 3, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    right = F.scaled_dot_product_attention(q, k, v)
    assert (dit.attention_by_products(q, k, v) - right).abs().max() < FLOAT32
    half = dit.attention_by_products(*(x.bfloat16() for x in (q, k, v)))
    assert half.dtype == torch.bfloat16
    assert (half - right).norm() / right.norm() < 0.007  # 0.008 with a softmax in bfloat16


@pytest.mark.parametrize(("most", "fused"), [(2 * 3 * 16**2, False), (2 * 3 * 16**2 - 1, True)])
def test_too_many_scores_are_left_to_torchs_kernel(most, fused, monkeypatch):
    monkeypatch.setattr(dit, "SCORES_AT_MOST", most)
    with torch.profiler.profile() as profile:
        dit.attention_by_products(*torch.zeros(3, 2, 3, 16, 8))
    assert any("flash" in event.key for event in profile.key_averages()) is fused


@pytest.fixture
def small():
    """A network whose weights are large enough for every non-linearity to matter, and small enough not to saturate any."""
    return randomised(DiT(input_size=6, hidden_size=64, depth=6, num_heads=4, num_classes=CLASSES), std=0.12)


def test_agrees_with_diffusers_in_float64(small):
    """Tight enough to tell 1e-6 from 1e-5 in a norm."""
    assert disagreement(small, 6, torch.float64) < FLOAT64


@pytest.mark.parametrize(
    ("deviation", "tolerance"), [({"frequency_shift": 1}, FLOAT32), ({"norm_eps": 1e-5}, FLOAT64)], ids=["timesteps", "norm"]
)
def test_parity_notices_what_diffusers_does_differently(small, deviation, tolerance):
    assert disagreement(small, 6, torch.float64, **deviation) > 10 * tolerance


@pytest.mark.parametrize("network", ["official", "diffusers"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FLOAT32), (torch.float64, FLOAT64)])
def test_diffusers_arithmetic_is_diffusers_as_it_comes(small, network, dtype, tolerance):
    """In float64 either of its two deviations alone would show, and the official network does in float32 too."""
    same = DiT(input_size=6, hidden_size=64, depth=6, num_heads=4, num_classes=CLASSES, network=network)
    same.load_state_dict(small.state_dict())
    found = difference(same.to(dtype), diffusers_twin(small).to(dtype), 6, dtype)
    assert found < tolerance if network == "diffusers" else found > 10 * FLOAT32


@pytest.mark.parametrize("network", ["official", "diffusers"])
@torch.no_grad()
def test_both_arithmetics_multiply_in_bfloat16(network):
    """The blocks in half precision are the same network, to what bfloat16 holds."""
    options = {"input_size": 6, "hidden_size": 64, "depth": 2, "num_heads": 4, "num_classes": CLASSES, "network": network}
    whole, half = (randomised(DiT(**options), std=0.12) for _ in range(2))
    x, t, y = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(3)), torch.tensor([3, 700]), torch.tensor([1, 2])
    expected, found = whole(x, t, y), half.to_half(torch.bfloat16)(x, t, y)
    assert 0 < (found - expected).abs().max() < 0.02 * expected.abs().max()


def swap_rows_and_columns(_patch, network):
    network.pos_embed.data = network.pos_embed.unflatten(1, (3, 3)).transpose(1, 2).flatten(1, 2)


def cosine_before_sine_of_positions(_patch, network):
    sin_column, cos_column, sin_row, cos_row = network.pos_embed.chunk(4, dim=2)
    network.pos_embed.data = torch.cat([cos_column, sin_column, cos_row, sin_row], dim=2)


def sine_before_cosine_of_timesteps(patch, _network):
    original = dit.timestep_frequencies
    patch.setattr(dit, "timestep_frequencies", lambda t, **_: torch.cat(original(t).chunk(2, dim=1)[::-1], dim=1))


def exact_gelu(patch, _network):
    patch.setattr(dit.Mlp, "forward", lambda self, x: self.fc2(F.gelu(self.fc1(x))))


def shift_for_scale(patch, _network):
    original = dit.modulate
    patch.setattr(dit, "modulate", lambda x, shift, scale: original(x, scale, shift))


def scale_without_one(patch, _network):
    patch.setattr(dit, "modulate", lambda x, shift, scale: x * scale.unsqueeze(1) + shift.unsqueeze(1))


def heads_before_qkv(patch, _network):
    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    patch.setattr(dit.Attention, "forward", forward)


def channels_before_pixels(patch, _network):
    def unpatchify(self, tokens):
        patches = tokens.unflatten(1, (3, 3)).unflatten(3, (self.out_channels, self.patch_size, self.patch_size))
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    patch.setattr(dit.DiT, "unpatchify", unpatchify)


def tokens_column_by_column(patch, _network):
    patch.setattr(dit.PatchEmbed, "forward", lambda self, x: self.proj(x).transpose(2, 3).flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    "breakage",
    [
        swap_rows_and_columns,
        cosine_before_sine_of_positions,
        sine_before_cosine_of_timesteps,
        exact_gelu,
        shift_for_scale,
        scale_without_one,
        heads_before_qkv,
        channels_before_pixels,
        tokens_column_by_column,
    ],
)
def test_parity_notices_a_broken_network(small, monkeypatch, breakage):
    breakage(monkeypatch, small)
    assert disagreement(small, 6) > 10 * FLOAT32


def test_xl2_is_the_official_network():
    """Its parameters by number and name; the names are written out here once more, because files depend on them."""
    with torch.device("meta"):
        network = DiT_models["DiT-XL/2"](input_size=32, num_classes=1000)
    layers = ["x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "final_layer.linear", "final_layer.adaLN_modulation.1"]
    inside = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"]
    layers += [f"blocks.{number}.{name}" for number in range(28) for name in inside]
    names = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    names |= {"y_embedder.embedding_table.weight", "pos_embed"}
    assert sum(parameter.numel() for parameter in network.parameters()) == 675_129_632
    assert set(network.state_dict()) == names
    assert len(names) == 292
    assert network.state_dict()["pos_embed"].shape == (1, 256, 1152)


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458)])
def test_sizes_are_the_papers(size, millions):
    with torch.device("meta"):
        network = DiT_models[f"DiT-{size}/2"](input_size=4)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.6)


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_null_label_is_the_last_row(num_classes):
    network = DiT(input_size=2, hidden_size=8, depth=1, num_heads=1, num_classes=num_classes)
    assert network.null_label == num_classes
    assert network.y_embedder.embedding_table.weight.shape == (num_classes + 1, 8)


def test_untrained_network_predicts_zero():
    network = DiT(input_size=4, hidden_size=8, depth=1, num_heads=1, num_classes=CLASSES)
    out = network(torch.randn(1, 4, 4, 4), torch.tensor([5]), torch.tensor([1]))
    assert torch.equal(out, torch.zeros(1, 8, 4, 4))


def test_input_size_has_to_fit_the_patches():
    with pytest.raises(ValueError, match="input_size 7 is not a multiple of patch_size 2"):
        DiT(input_size=7)


N = 2
T = torch.tensor(371)
LABELS = torch.tensor([3, 9])


@pytest.fixture
def latents():
    return torch.randn(N, 4, 6, 6, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def guided_by_hand(network, x, cfg_scale, channels):
    """(conditional rows, unconditional rows) of a guided prediction, from two plain calls of the network."""
    conditional = network(x, T.repeat(N), LABELS)
    unconditional = network(x, T.repeat(N), torch.full((N,), CLASSES))
    guided = cfg_scale * conditional[:, :channels] + (1 - cfg_scale) * unconditional[:, :channels]
    return [torch.cat([guided, rows[:, channels:]], dim=1) for rows in (conditional, unconditional)]


@torch.no_grad()
def with_cfg(network, x, cfg_scale, **options):
    """`forward_with_cfg` of x and a second half that nobody may read."""
    labels = torch.cat([LABELS, torch.full((N,), CLASSES)])
    return network.forward_with_cfg(torch.cat([x, torch.full_like(x, torch.nan)]), T.repeat(2 * N), labels, cfg_scale, **options)


def close(a, b):
    return torch.allclose(a, b, rtol=0, atol=FLOAT32 * b.abs().max().item())


@pytest.mark.parametrize(("options", "channels"), [({}, 3), ({"cfg_channels": 4}, 4), ({"cfg_channels": 1}, 1)])
def test_forward_with_cfg_guides_the_chosen_channels(small, latents, options, channels):
    out = with_cfg(small, latents, 4.0, **options)
    conditional, unconditional = guided_by_hand(small, latents, 4.0, channels)
    assert out.shape == (2 * N, 8, 6, 6)
    assert close(out[:N], conditional)
    assert close(out[N:], unconditional)
    assert torch.equal(out[:N, :channels], out[N:, :channels])
    assert not close(out[:N, channels:], out[N:, channels:])


WRONG_GUIDANCE = {
    "added to the conditional": lambda c, u, w: c + w * (c - u),
    "roles swapped": lambda c, u, w: c + w * (u - c),
    "none": lambda c, _u, _w: c,
}


@pytest.mark.parametrize("formula", WRONG_GUIDANCE.values(), ids=WRONG_GUIDANCE)
def test_wrong_guidance_is_noticed(small, latents, monkeypatch, formula):
    expected = guided_by_hand(small, latents, 4.0, 3)[0]
    monkeypatch.setattr(dit, "guide", formula)
    wrong = with_cfg(small, latents, 4.0)[:N]
    assert (wrong - expected).abs().max() > 10 * FLOAT32 * expected.abs().max()


@pytest.mark.parametrize(("channels", "wrong"), [(3, 4), (4, 3)])
def test_wrong_channels_are_noticed(small, latents, channels, wrong):
    expected = guided_by_hand(small, latents, 4.0, channels)[0]
    assert (with_cfg(small, latents, 4.0, cfg_channels=wrong)[:N] - expected).abs().max() > 10 * FLOAT32 * expected.abs().max()
