"""The networks of LightningDiT, JiT, DDT, RAE, MeanFlow and iMF against second writings, their sizes, names and files."""

import argparse
import copy
import json
import re

import pytest
import second_writings as second
import torch
from families import TOLERANCE, difference, keys_of, lively, write
from safetensors.torch import save_file
from test_models_main import command
from torch.nn.functional import silu

from fiducial import UserError
from fiducial.models.checkpoints import checkpoint, label_table, shapes
from fiducial.models.commands import conversion
from fiducial.models.networks import ddt, imf, jit, lightningdit, meanflow, parts, rae, raev2, repa
from fiducial.models.networks.table import MEAN_VELOCITY, NETWORKS, asked, models, spec_of, told_by
from fiducial.sampling.source import numerics
from fiducial.sampling.source.numerics import REFERENCE

CPU = torch.device("cpu")
SMALL = {"hidden_size": 32, "depth": 3, "num_heads": 4, "num_classes": 10}
WRAPPED = {"q_proj", "k_proj", "v_proj", "out_proj", "w1", "w2", "w3", "linear", "0", "2"}


def in_files(state):
    """iMF's weights under the names of its files."""

    def name(key):
        if "." not in key:
            return key
        *outer, module, kind = key.split(".")
        if module == "embedding_table":
            return ".".join([*outer, module, "_flax_embedding", kind])
        return ".".join([*outer, module, "_flax_linear", kind]) if module in WRAPPED and kind in ("weight", "bias") else key

    return {name(key): value for key, value in state.items()}


def lightningdit_case(**options):
    network = lightningdit.LightningDiT(input_size=6, in_channels=5, **SMALL, **options)
    qk_norm = options.get("qk_norm", False)
    return network, lambda x, t, y: second.of_lightningdit(network.state_dict(), x, t, y, 4, qk_norm), 6


def jit_case(**options):
    network = jit.JiT(input_size=12, patch_size=4, bottleneck=9, start=1, **SMALL, **options)
    return network, lambda x, t, y: second.of_jit(network.state_dict(), x, t, y, 4, 1), 12


def ddt_case():
    network = ddt.DDT(input_size=6, encoders=2, **SMALL)
    return network, lambda x, t, y: second.of_ddt(network.state_dict(), x, t, y, 4, 2, 2), 6


def rae_case(**options):
    head = {"head_size": 48, "head_depth": 2, "head_heads": 3} | options
    network = rae.DiTDH(input_size=4, in_channels=7, **SMALL, **head)
    heads = 4, head["head_heads"]
    return network, lambda x, t, y: second.of_rae(network.state_dict(), x, t, y, heads, 3, head.get("qk_norm", False)), 4


def raev2_files(state):
    """RAEv2's weights under the names of its files."""

    def name(key):
        key = re.sub("^y_embedder", "ctx_embedder", key).replace("adaLN", "adaln")
        return re.sub(r"^((base_)?final_layer\.norm)_final", r"\1", key)

    return {name(key): value for key, value in state.items()}


def raev2_case(**options):
    head = {"head_size": 48, "head_depth": 2, "head_heads": 3, "inner": 2} | options
    network = raev2.RAEv2(input_size=4, in_channels=7, **SMALL, **head)

    def once_more(x, t, y):
        return second.of_raev2(raev2_files(network.state_dict()), x, t, y, (4, head["head_heads"]), 3, head["inner"])

    return network, once_more, 4, *([True] if head["inner"] else [])


def meanflow_case(**options):
    network = meanflow.MeanFlow(input_size=6, **SMALL, **options)
    norm = options.get("qk_norm", False)
    return network, lambda x, t, y: second.of_sit(network.state_dict(), x, t, y, 4, norm, gap=t - 0.25), 6, torch.tensor([0.25])


def imf_case():
    network = imf.IMF(input_size=6, own=1, **SMALL)
    more = torch.tensor([0.25]), torch.tensor([7.5]), torch.tensor([0.1]), torch.tensor([0.8])

    def once_more(x, t, y):
        return second.of_imf(in_files(network.state_dict()), x, t - 0.25, 7.5, 0.1, 0.8, y, 4)

    return network, once_more, 6, *more


CASES = {
    "LightningDiT": lightningdit_case,
    "LightningDiT, normalised": lambda: lightningdit_case(qk_norm=True, patch_size=2),
    "LightningDiT, no shift": lambda: lightningdit_case(wo_shift=True),
    "JiT": jit_case,
    "DDT": ddt_case,
    "RAE": rae_case,
    "RAE, normalised, one width": lambda: rae_case(qk_norm=True, head_size=32, head_heads=4),
    "RAEv2": raev2_case,
    "RAEv2, no inner head, one width": lambda: raev2_case(inner=None, head_size=32, head_heads=4),
    "MeanFlow": meanflow_case,
    "MeanFlow, normalised": lambda: meanflow_case(qk_norm=True),
    "iMF": imf_case,
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_is_the_second_writing(case):
    network, *more = case()
    lively(network)
    assert difference(network, *more) < TOLERANCE


def halves_turned(x, by):
    """The other convention of a rotation: number i with number i + d / 2."""
    x = parts.wide(x)
    a, b = x.chunk(2, dim=-1)
    return x * by[0] + torch.cat([-b, a], dim=-1) * by[1]


def columns_first(head_dim, side, _device=None):
    angles = torch.outer(torch.arange(side, dtype=torch.float32), parts.frequencies(head_dim // 4))
    return parts.rotation(torch.cat([angles.repeat(side, 1), angles.repeat_interleave(side, dim=0)], dim=1))


def swapped(self, x):
    a, b = self.w12(x).chunk(2, dim=-1)
    return self.w3(a * silu(b))


def without_eps(self, x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-3) * self.weight


def all_turned(self):
    return tuple(torch.cat([one[:16], one[1:2].expand(len(one) - 16, -1)]) for one in (self.freqs_cos, self.freqs_sin))


WRONG = {
    "the other rotation": (("LightningDiT", "JiT", "DDT", "RAE", "RAEv2", "iMF"), parts, "turned", halves_turned),
    "columns before rows": (("LightningDiT", "JiT", "RAE", "RAEv2"), parts, "grid_rotation", columns_first),
    "rows before columns": (("DDT",), ddt, "interleaved_rotation", parts.grid_rotation),
    "halves of the MLP swapped": (("LightningDiT", "JiT", "RAE"), parts.SwiGLU, "forward", swapped),
    "another epsilon": (("LightningDiT", "JiT", "DDT", "RAE", "RAEv2", "iMF"), parts.RMSNorm, "forward", without_eps),
    "parts of the MLP swapped": (("RAEv2",), raev2.GatedMLP, "forward", lambda self, x: self.w3(self.w1(x) * silu(self.w2(x)))),
    "tokens behind the image that are turned": (("RAEv2",), parts.RotaryTable, "forward", all_turned),
    "DiT's period": (("DDT",), ddt, "MAX_PERIOD", 10_000.0),
    "places by number": (("DDT",), ddt, "EXTENT", 2.0),
    "a class that is turned": (("JiT",), parts, "behind", lambda n, by: tuple(torch.cat([one[-1:]] * n + [one]) for one in by)),
}


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for wrong, row in WRONG.items() for name in row[0]])
def test_a_wrong_variant_is_noticed(name, wrong, monkeypatch):
    _, where, part, other = WRONG[wrong]
    monkeypatch.setattr(where, part, other)
    network, *more = CASES[name]()
    assert difference(lively(network), *more) > 10 * TOLERANCE


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("MeanFlow")])
@torch.no_grad()
def test_turning_by_halves_changes_no_number(name):
    """As in half precision, here in float32; a second call changes nothing."""
    network, _, side, *more = CASES[name]()
    by_halves = copy.deepcopy(lively(network)).to_half(torch.float32).to_half(torch.float32)
    x, t, y = torch.randn(3, network.in_channels, side, side), torch.tensor([0.0, 0.4, 1.0]), torch.tensor([0, 7, 10])
    expected = network(x, t, y, *more)
    assert (by_halves(x, t, y, *more) - expected).abs().max() < TOLERANCE * expected.abs().max()
    assert {block.attn.turned for block in by_halves.blocks} == {parts.turned_by_halves}


@pytest.mark.parametrize(("case", "times"), [(jit_case, 1), (ddt_case, 1), (imf_case, 4)], ids=["JiT", "DDT", "iMF"])
@torch.no_grad()
def test_a_compiled_network_is_one_graph_with_no_table_in_it(case, times):
    """The cosines that are left are of embeddings, one for each number that it is told."""
    network, _, side, *more = case()
    x, y, graphs = torch.randn(3, network.in_channels, side, side), torch.tensor([0, 7, 10]), []
    numerics.compile_network(lively(network), REFERENCE, CPU)
    compiled = torch.compile(
        network.forward, fullgraph=True, dynamic=False, backend=lambda graph, _: graphs.append(graph) or graph
    )
    for t in (0.3, 0.8):
        assert torch.allclose(compiled(x, torch.tensor([t]), y, *more), network.forward(x, torch.tensor([t]), y, *more))
    assert [sum(node.target == "cos" for node in graph.graph.nodes) for graph in graphs] == [times]


@torch.no_grad()
def test_a_mean_velocity_over_no_time_is_asked_where_no_r_is_given():
    for case in (meanflow_case, imf_case):
        network = lively(case()[0])
        x, t, y = torch.randn(2, 4, 6, 6), torch.tensor([0.3, 0.8]), torch.tensor([1, 10])
        assert torch.equal(network(x, t, y), network(x, t, y, t))
        assert not torch.allclose(network(x, t, y), network(x, t, y, 0.5 * t), rtol=1e-3)


def test_what_a_sampler_says_reaches_the_network():
    seen = {}

    def network(name):
        def forward(x, *numbers):
            seen[name] = [value.tolist() for value in numbers]
            return x.repeat(1, 2, 1, 1)

        return forward

    x, labels = torch.ones(2, 3, 2, 2), torch.tensor([4, 5])
    outs = {}
    for name in ("SiT", "JiT", "DDT", "LightningDiT", "RAE", "RAEv2", "MeanFlow", "iMF"):
        ask = asked(network(name), NETWORKS[name], told=(7.5, 0.125, 0.75))
        outs[name] = ask(x, 0.75, labels, **({"r": 0.25} if NETWORKS[name].predicts == MEAN_VELOCITY else {}))
    for name in ("SiT", "JiT", "DDT", "LightningDiT"):
        assert seen[name] == [[0.25, 0.25], [4, 5]]
        assert torch.equal(outs[name], x if name == "JiT" else -x)
    assert seen["RAEv2"] == seen["RAE"] == [[0.75, 0.75], [4, 5]]
    assert seen["MeanFlow"] == [[0.75, 0.75], [4, 5], [0.25, 0.25]]
    assert seen["iMF"] == [[0.75, 0.75], [4, 5], [0.25, 0.25], [7.5, 7.5], [0.125, 0.125], [0.75, 0.75]]
    assert all(torch.equal(outs[name], x) for name in ("RAE", "RAEv2", "MeanFlow", "iMF"))


# In millions, of the papers' tables; of DDT and LightningDiT, XL's.
PUBLISHED = {
    "LightningDiT-XL/1": 675,
    "JiT-B/16": 131,
    "JiT-B/32": 133,
    "JiT-L/16": 459,
    "JiT-L/32": 462,
    "JiT-H/16": 953,
    "JiT-H/32": 956,
    "DDT-XL/2": 675,
    "RAE-XL/1": 839,
    "MeanFlow-B/4": 131,
    "MeanFlow-L/2": 459,
    "MeanFlow-XL/2": 676,
    "iMF-B/2": 89,
    "iMF-M/2": 174,
    "iMF-L/2": 409,
    "iMF-XL/2": 610,
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_sizes_are_the_papers(model):
    options = {"input_size": 512} if model.endswith("/32") else {}
    with torch.device("meta"):
        network = spec_of(model).build[model](**options)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(PUBLISHED[model], abs=0.8)


def of_blocks(count, *layers, first="blocks."):
    return {f"{first}{number}.{layer}" for number in range(count) for layer in layers}


def both(*layers):
    return {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


TIMES = both("t_embedder.mlp.0", "t_embedder.mlp.2") | {"y_embedder.embedding_table.weight"}
MODERN = {"norm1.weight", "norm2.weight"} | both("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3", "adaLN_modulation.1")
APART = {"norm1.weight", "norm2.weight"} | both("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.w1", "mlp.w2", "mlp.w3")
QK = ["attn.q_norm.weight", "attn.k_norm.weight"]
LAST = both("final_layer.linear", "final_layer.adaLN_modulation.1") | {"final_layer.norm_final.weight"}
GATED = both("attn.proj", "adaLN_modulation.0") | {
    f"{part}.weight" for part in ("norm1", "norm2", "attn.qkv", "attn.q_norm", "attn.k_norm", "mlp.w1", "mlp.w2", "mlp.w3")
}
FLAX = {f"attn.{part}_proj._flax_linear.weight" for part in ("q", "k", "v", "out")}
FLAX |= {f"mlp.w{part}._flax_linear.weight" for part in (1, 2, 3)}
SCALED = {"norm1.weight", "norm2.weight", "attn_scale", "mlp_scale", *QK, *FLAX}
TOLD = [
    f"{one}.mlp.{layer}._flax_linear"
    for one in ("h_embedder", "omega_embedder", "cfg_t_start_embedder", "cfg_t_end_embedder")
    for layer in (0, 2)
]
NAMES = {
    "LightningDiT": TIMES
    | LAST
    | both("x_embedder.proj")
    | {"pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"}
    | of_blocks(3, *MODERN),
    "JiT": TIMES
    | LAST
    | both("x_embedder.proj2")
    | {"pos_embed", "x_embedder.proj1.weight", "in_context_posemb"}
    | of_blocks(3, *MODERN, *QK),
    "DDT": TIMES
    | both("x_embedder.proj", "s_embedder.proj", "final_layer.linear", "final_layer.adaLN_modulation.0")
    | of_blocks(3, *GATED),
    "RAE": TIMES
    | LAST
    | both("x_embedder.proj", "s_embedder.proj", "s_projector")
    | {"pos_embed", "t_embedder.W"}
    | {f"{which}_feat_rope.freqs_{kind}" for which in ("enc", "dec") for kind in ("cos", "sin")}
    | of_blocks(5, *MODERN),
    "RAEv2": both("t_embedder.mlp.0", "t_embedder.mlp.2", "x_embedder.proj", "s_embedder.proj", "s_projector")
    | {"t_embedder.W", "t_embedder.learnable_tokens", "ctx_embedder.learnable_tokens", "ctx_embedder.embedding_table.weight"}
    | {f"{which}_rope.freqs_{kind}" for which in ("enc", "dec") for kind in ("cos", "sin")}
    | of_blocks(5, *APART, *QK)
    | {f"blocks.{number}.adaln_modulation.1.{kind}" for number in (3, 4) for kind in ("weight", "bias")}
    | both(*(f"{which}final_layer.{part}" for which in ("", "base_") for part in ("linear", "adaln_modulation.1")))
    | {"final_layer.norm.weight", "base_final_layer.norm.weight"},
    "iMF": both("x_embedder.proj", *TOLD, "u_final_layer.linear._flax_linear")
    | {"y_embedder.embedding_table._flax_embedding.weight", "u_final_layer.norm.weight"}
    | {"class_tokens", "omega_tokens", "t_min_tokens", "t_max_tokens", "time_tokens"}
    | of_blocks(2, *SCALED, first="shared_blocks.")
    | of_blocks(1, *SCALED, first="u_heads."),
}


@pytest.mark.parametrize("family", NAMES)
def test_names_are_those_of_its_files(family):
    found = set(CASES[family]()[0].state_dict())
    assert set(IN_FILES.get(family, dict)(dict.fromkeys(found, 0))) == NAMES[family]


def test_a_meanflow_has_a_sits_names_and_another_embedder():
    extra = set(meanflow_case()[0].state_dict()) - set(repa.REPA(input_size=6, **SMALL).state_dict())
    assert extra == both("r_embedder.mlp.0", "r_embedder.mlp.2")


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def other(state):
    return {key: value + 1 for key, value in state.items()}


IN_FILES = {"iMF": in_files, "RAEv2": raev2_files}


def jit_file(state):
    of = {name: under("net.", other(state) if name != "model_ema1" else state) for name in ("model", "model_ema1", "model_ema2")}
    return of | {"optimizer": {"state": {}, "param_groups": []}, "epoch": 599, "args": argparse.Namespace(model="JiT-B/16")}


def ddt_file(state):
    trainer = {"diffusion_trainer.proj.0.weight": torch.ones(2, 2)}
    return {"state_dict": under("denoiser.", other(state)) | under("ema_denoiser.", state) | trainer, "global_step": 400_000}


def imf_file(state):
    more = {"v_final_layer.norm.weight": torch.ones(4), "v_heads.0.attn_scale": torch.ones(4)}
    return under("net.", in_files(state) | more)


REPA_OF = {"repa_projector.weight": torch.ones(2, 2), "repa_projector.bias": torch.ones(2)}
# Its smallest size, the size of latents, its file, and the name of the weights that are drawn.
FILES = {
    "LightningDiT": ("LightningDiT-XS/1", 8, lambda s: {"model": other(s), "ema": under("module.", s), "opt": {}}, "ema"),
    "JiT": ("JiT-XS/8", 16, jit_file, "model_ema1"),
    "DDT": ("DDT-XS/2", 8, ddt_file, "state_dict.ema_denoiser"),
    "RAE": ("RAE-XS/1", 4, lambda state: {"ema": state, "model": other(state)}, "ema"),
    "RAEv2": ("RAEv2-XS/1", 4, lambda s: {"step": 4, "model": raev2_files(other(s)), "ema": raev2_files(s) | REPA_OF}, "ema"),
    "MeanFlow": ("MeanFlow-XS/2", 8, lambda state: {"model": other(state), "ema": state, "steps": 7}, "ema"),
    "iMF": ("iMF-XS/2", 8, imf_file, "plain"),
}


def smallest(family, std=0.05):
    model, size, *_ = FILES[family]
    channels = 3 if family == "JiT" else 4
    return lively(spec_of(model).build[model](input_size=size, in_channels=channels, num_classes=10), std=std)


@torch.no_grad()
@pytest.mark.parametrize("family", FILES)
def test_its_files_are_read(family, tmp_path):
    model, size, content, key = FILES[family]
    network = smallest(family)
    path = write(content(network.state_dict()), tmp_path)
    found = checkpoint.read(path)
    assert (found.family, found.kind, found.says_family) == (family, key, True)
    described = shapes.describe(found.state, path)
    assert (described["model"], label_table.classes_of(found)) == (model, (10, True))
    latent = described["latent"]
    if not NETWORKS[family].layout.any_size:
        assert latent.size == size
    shapes.check(found.state, path, **described)
    loaded = found.load(model, 10, CPU)
    x, t, y = torch.randn(2, network.in_channels, size, size), torch.tensor([0.2, 0.9]), torch.tensor([3, 10])
    expected = network(x, t, y)
    assert (loaded(x, t, y) - expected).abs().max() < TOLERANCE * expected.abs().max()
    assert (loaded.null_label, loaded.in_channels) == (10, network.in_channels)


@pytest.mark.parametrize("family", FILES)
def test_inspect_names_the_family(family, tmp_path):
    path = tmp_path / "bare.safetensors"
    state = smallest(family).state_dict()
    save_file(IN_FILES.get(family, dict)(state), path)
    _, out = command("inspect", path, "--json")
    told = json.loads(out)
    assert (told["family"], told["model"], told["num_classes"]) == (family, FILES[family][0], 10)


def test_either_average_of_a_jit_is_drawn_by_name(tmp_path):
    state = smallest("JiT").state_dict()
    path = write(jit_file(state), tmp_path)
    found = checkpoint.read(path)
    assert (found.networks, found.averages) == (("model", "model_ema1", "model_ema2"), ("model_ema1", "model_ema2"))
    assert not found.is_usual
    second_one = checkpoint.read(path, "model_ema2")
    assert torch.equal(second_one.state["in_context_posemb"], state["in_context_posemb"] + 1)
    assert second_one.kind == "model_ema2"
    with pytest.raises(UserError, match=r"--weights-key .ema.: .* holds model, model_ema1, model_ema2"):
        checkpoint.read(path, "ema")


def test_averages_by_their_decay_are_chosen_by_name(tmp_path):
    state = smallest("JiT").state_dict()
    content = {"emas": {decay: under("net.", {k: v + decay for k, v in state.items()}) for decay in (0.999, 0.9999)}}
    path = write(content, tmp_path)
    with pytest.raises(UserError, match=r"holds several networks, emas\.0\.999\.net, emas\.0\.9999\.net; say by --weights-key"):
        checkpoint.read(path)
    found = checkpoint.read(path, "emas.0.9999.net")
    assert torch.equal(found.state["in_context_posemb"], state["in_context_posemb"] + 0.9999)


def test_the_raw_weights_of_a_ddt_are_drawn_by_name(tmp_path):
    state = smallest("DDT").state_dict()
    path = write(ddt_file(state), tmp_path)
    raw = checkpoint.read(path, "state_dict.denoiser")
    assert torch.equal(raw.state["blocks.0.norm1.weight"], state["blocks.0.norm1.weight"] + 1)
    assert "not an EMA" in raw.weights


def test_an_image_size_that_weights_do_not_tell_is_not_contradicted(tmp_path):
    for family, doubts in (("DDT", 0), ("MeanFlow", 1)):
        found = checkpoint.read(write({"ema": smallest(family).state_dict(), "args": {"image_size": 512}}, tmp_path))
        assert len(label_table.contradictions(found, found.path, 64)) == doubts


def test_what_only_training_needs_of_an_imf_is_left_out(tmp_path):
    found = checkpoint.read(write(imf_file(smallest("iMF").state_dict()), tmp_path))
    assert found.unused == ("v_heads.", "v_final_layer.")
    assert set(found.state) == keys_of(imf.IMF_models["iMF-XS/2"])


@pytest.mark.parametrize("family", FILES)
def test_another_model_is_refused_by_name(family, tmp_path):
    path = write(smallest(family).state_dict(), tmp_path)
    with pytest.raises(UserError, match=f"is of {family}'s kind; only a DiT's weights can be converted"):
        conversion.convert(path, tmp_path / "new.safetensors", "safetensors")
    found = checkpoint.read(path)
    with pytest.raises(UserError, match=f"of {family}'s kind, .* leave --model out, or give a {family}'s"):
        checkpoint.require_family(found, path, "DiT-XS/2")
    cut = {key: value for key, value in smallest(family).state_dict().items() if key != "y_embedder.embedding_table.weight"}
    with pytest.raises(UserError, match=f"is not a {family} checkpoint: it has no y_embedder"):
        shapes.describe(cut, path)
    with pytest.raises(UserError, match=f"is not a {family} checkpoint: it has no"):
        shapes.describe({}, path, family)


def test_no_family_is_taken_for_another():
    for family in FILES:
        assert told_by(smallest(family).state_dict()).name == family
    assert told_by(NETWORKS["DiT"].build["DiT-XS/2"](input_size=8).state_dict()) is None


def test_models_have_names_of_their_families():
    assert {"REPA-XL/1", "LightningDiT-1p6B/1", "JiT-H/32", "DDT-XL/2", "RAE-XL/1", "MeanFlow-B/4", "iMF-XL/2"} <= set(models())
    assert [name for name in models() if name.startswith("JiT")] == [
        *("JiT-H/16", "JiT-H/32", "JiT-L/16", "JiT-L/32", "JiT-B/16", "JiT-B/32", "JiT-XS/8")
    ]
    assert [jit.noise_scale(size) for size in (256, 512)] == [1.0, 2.0]


@torch.no_grad()
@pytest.mark.parametrize("family", FILES)
def test_blocks_multiply_in_bfloat16_and_attend_by_products(family):
    size = FILES[family][1]
    whole, half, plain = (smallest(family) for _ in range(3))
    x, t, y = torch.randn(2, whole.in_channels, size, size), torch.tensor([0.2, 0.9]), torch.tensor([3, 10])
    expected = whole(x, t, y)
    found = half.to_half(torch.bfloat16)(x, t, y)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()
    plain.attend_by_products()
    assert (plain(x, t, y) - expected).abs().max() < TOLERANCE * expected.abs().max()
