"""The fast path: what it resolves to, how far its images are from the reference, and what happens where it does not work."""

import ctypes
import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import PLAIN, digits_source, draw_files, options, randomised, run_command
from diffusers.models.upsampling import Upsample2D
from safetensors.torch import load_file, save_file

import fiducial
import sample_ddp
from fiducial.models import DiT_models
from fiducial.models.checkpoints.checkpoint import Checkpoint
from fiducial.models.decoders.autoencoder import Autoencoder
from fiducial.models.networks.dit import attention_by_products
from fiducial.precision import GPU_SWITCHES, SWITCHES
from fiducial.sampling import memory
from fiducial.sampling.source import compilation, numerics
from fiducial.sampling.source.decoding import DECODED_AT_ONCE
from fiducial.sampling.source.latent_diffusion import LatentDiffusion, finite
from fiducial.sampling.source.networks import Networks
from fiducial.sampling.source.numerics import REFERENCE, Numerics

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def draw(*arguments: str) -> tuple[dict, np.ndarray]:
    """A run in this process: its manifest and its images."""
    config, _ = sample_ddp.parse([str(argument) for argument in arguments])
    npz = draw_files(config, fiducial.init("cpu"))
    with np.load(npz) as arrays:
        return json.loads((npz.with_suffix("") / "manifest.json").read_text()), arrays["arr_0"].astype(int)


def out_of_the_ordinary(manifest: dict) -> list[dict]:
    """What happened in a run's only session, but for the verification of its numerics, which has tests of its own."""
    (session,) = manifest["sessions"]
    return [event for event in session["events"] if event["event"] not in ("verified", "not verified")]


def resolved(*given: str, device: torch.device = CPU) -> Numerics:
    return numerics.choices(sample_ddp.parse(["--preset", "digits", *given])[0], device)[0]


@pytest.fixture
def hardware(monkeypatch):
    """Any processor and GPU, on which compilation works."""

    def pretend(instructions: str = "avx512_bf16", capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(numerics, "cpu_flags", lambda: f"flags : fpu {instructions} sse2")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(numerics, "can_compile", lambda _: True)

    return pretend


@pytest.mark.parametrize(
    ("given", "device", "instructions", "capability", "expected"),
    [
        ([], CPU, "avx512_bf16", None, ("bf16", True, "products", True)),
        ([], CPU, "amx_bf16 avx512_bf16", None, ("bf16", True, "sdpa", True)),
        ([], CPU, "avx2", None, ("fp32", True, "sdpa", False)),
        ([], CUDA, "avx512_bf16", (9, 0), ("bf16", True, "sdpa", False)),
        ([], CUDA, "avx512_bf16", (7, 5), ("fp32", False, "sdpa", False)),
        (["--exact"], CPU, "avx512_bf16", None, ("fp32", False, "sdpa", False)),
        (["--exact"], CUDA, "avx512_bf16", (9, 0), ("fp32", False, "sdpa", False)),
        (["--exact", "--attention", "math"], CPU, "avx512_bf16", None, ("fp32", False, "math", False)),
        (["--precision", "fp32"], CPU, "avx512_bf16", None, ("fp32", True, "sdpa", False)),
        (["--precision", "bf16"], CPU, "avx2", None, ("bf16", True, "products", True)),
        (["--no-tf32"], CUDA, "avx512_bf16", (9, 0), ("fp32", False, "sdpa", False)),
        (["--tf32"], CUDA, "avx512_bf16", (9, 0), ("tf32", False, "sdpa", False)),
        (["--precision", "bf16", "--compile"], CUDA, "avx512_bf16", (9, 0), ("bf16", True, "sdpa", False)),
        (["--precision", "fp16", "--vae-slicing"], CUDA, "avx2", (7, 5), ("fp16", True, "sdpa", True)),
        (["--attention", "sdpa"], CPU, "avx512_bf16", None, ("bf16", True, "sdpa", True)),
        (["--attention", "products"], CPU, "amx_bf16", None, ("bf16", True, "products", True)),
        (["--no-compile", "--no-vae-slicing"], CPU, "avx512_bf16", None, ("bf16", False, "products", False)),
    ],
)
def test_what_auto_means(hardware, given, device, instructions, capability, expected):
    hardware(instructions, capability)
    found = resolved(*given, device=device)
    assert (found.precision, found.compile, found.attention, found.vae_slicing) == expected


GRAPHS = ("bf16", True, True), ("bf16", True, False)


@pytest.mark.parametrize(
    ("given", "device", "expected"),
    [
        ([], CUDA, [*GRAPHS, ("bf16", False, False), ("tf32", False, False), ("fp32", False, False)]),
        (["--offload", "model"], CUDA, [GRAPHS[1], ("bf16", False, False), ("tf32", False, False), ("fp32", False, False)]),
        (["--precision", "bf16", "--compile"], CUDA, [*GRAPHS]),
        (["--precision", "bf16", "--no-cuda-tuning"], CUDA, [GRAPHS[1], ("bf16", False, False)]),
        (["--compile"], CUDA, [*GRAPHS, ("tf32", True, False), ("fp32", True, False)]),
        (["--no-compile", "--cuda-tuning"], CUDA, [(name, False, True) for name in ("bf16", "tf32", "fp32")]),
        (["--tf32"], CUDA, [("tf32", False, False)]),
        (["--exact"], CUDA, [("fp32", False, False)]),
        ([], CPU, [("bf16", True, False), ("bf16", False, False), ("fp32", True, False), ("fp32", False, False)]),
        (["--precision", "fp32"], CPU, [("fp32", True, False), ("fp32", False, False)]),
    ],
)
def test_what_is_tried_and_in_which_order(hardware, given, device, expected):
    hardware()
    config, _ = sample_ddp.parse(["--preset", "digits", *given])
    found = [(one.precision, one.compile, one.cuda_tuning) for one in numerics.choices(config, device)]
    assert found == expected


def test_where_nothing_compiles_nothing_is_tried_twice(hardware, monkeypatch):
    hardware()
    monkeypatch.setattr(numerics, "can_compile", lambda _: False)
    config, _ = sample_ddp.parse(["--preset", "digits"])
    found = [(one.precision, one.compile, one.cuda_tuning) for one in numerics.choices(config, CUDA)]
    assert found == [("bf16", False, False), ("tf32", False, False), ("fp32", False, False)]


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_an_old_gpu_is_not_asked_for_what_it_lacks(hardware, precision):
    hardware(capability=(7, 5))
    with pytest.raises(fiducial.UserError, match=f"--precision {precision}.*: needs|--precision {precision}: this GPU"):
        resolved("--precision", precision, device=CUDA)


@pytest.mark.parametrize(("precision", "tf32"), [("tf32", True), ("fp32", False), ("bf16", False), ("fp16", False)])
def test_tf32_is_on_only_where_it_was_asked_for(precision, tf32):
    config, _ = sample_ddp.parse(["--preset", "digits"])
    before = [switch.fp32_precision for switch in SWITCHES]
    with numerics.applied(Numerics(precision, False, "sdpa", False), config, CPU):
        found = {switch.fp32_precision for switch in GPU_SWITCHES}
    assert found == {"tf32" if tf32 else "ieee"}
    assert [switch.fp32_precision for switch in SWITCHES] == before


@pytest.mark.parametrize(
    ("how", "compiles", "slices", "by_products", "merges"),
    [
        (["--compile"], True, False, False, False),
        (["--vae-slicing"], False, True, False, False),
        (["--attention", "products"], False, False, True, False),
        (["--precision", "bf16", "--no-compile", "--attention", "sdpa"], False, False, False, True),
        (["--precision", "fp16", "--no-compile"], False, False, False, False),
    ],
)
def test_networks_are_made_as_resolved(how, compiles, slices, by_products, merges, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(LatentDiffusion, "guided", lambda *_: lambda *_: None)  # nothing is run
    given = [*options(tiny_checkpoint, "unused"), "--no-vae-slicing", *how]
    config, _ = sample_ddp.parse([str(argument) for argument in given])
    drawer = digits_source(config, CPU, numerics.choices(config, CPU)[0])
    drawer.load()
    dit, vae = drawer.networks.network, drawer.networks.decoder.vae
    assert (dit._compiled_call_impl is not None, vae.use_slicing) == (compiles, slices)
    assert {one.use_conv_transpose for one in vae.decoder.modules() if isinstance(one, Upsample2D)} == {merges}
    assert {block.attn.attend is attention_by_products for block in dit.blocks} == {by_products}


@pytest.fixture(scope="module")
def network():
    return randomised(DiT_models["DiT-S/2"](input_size=8, num_classes=10)).requires_grad_(False)


@torch.no_grad()
def test_only_the_blocks_are_half_and_rounding_does_not_add_up(network):
    """Far closer to fp32 than a network that is in bfloat16 altogether."""
    x, t, y = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([400]), torch.arange(4)
    right = network(x, t, y)

    def error(other: torch.nn.Module, x: torch.Tensor) -> float:
        return ((other(x, t, y).float() - right).norm() / right.norm()).item()

    def copy() -> torch.nn.Module:
        fresh = DiT_models["DiT-S/2"](input_size=8, num_classes=10)
        fresh.load_state_dict(network.state_dict())
        return fresh

    half = copy().to_half(torch.bfloat16)
    kinds = {name.split(".")[0]: parameter.dtype for name, parameter in half.named_parameters()}
    assert kinds.pop("blocks") == torch.bfloat16
    assert set(kinds.values()) == {torch.float32}
    assert half(x, t, y).dtype == torch.float32
    assert error(half, x) < 0.01
    assert error(half, x) < error(copy().bfloat16(), x.bfloat16()) / 2


def test_one_timestep_is_embedded_once_but_for_exact(tiny_checkpoint, tmp_path, monkeypatch):
    rows = []
    original = Checkpoint.load

    def spied(*arguments):
        dit = original(*arguments)
        dit.t_embedder.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
        return dit

    monkeypatch.setattr(Checkpoint, "load", spied)
    draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=4))
    assert set(rows) == {1}
    rows.clear()
    draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=4, run_name="exact"), "--exact")
    assert set(rows) == {8}


FAULTS = """
import ctypes, resource, sys
from pathlib import Path
import sample_ddp
sys.argv = sys.argv[1:]
sample_ddp.main()
import torch
from fiducial.sampling import memory
libc, size = ctypes.CDLL(None), 64 << 20
libc.malloc.restype = ctypes.c_void_p
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = ctypes.c_void_p(libc.malloc(size))
    ctypes.memset(made, 1, size)
    print("faults", resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    libc.free(made)
kept = memory._field(Path("/proc/self/status"), "VmRSS")
print("given back", kept - memory.held(torch.device("cpu")))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_a_run_keeps_memory_that_it_frees(tiny_checkpoint, tmp_path):
    """The second time 64 MB need no page of the system; what is kept does not count as held."""
    given = options(tiny_checkpoint, tmp_path, num_fid_samples=4, num_sampling_steps=1)
    done = run_command("-c", FAULTS, "sample_ddp.py", *given)
    told = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines()[-2:])
    assert int(told["faults"]) < 100, done.stderr
    assert int(told["given back"]) > 60_000_000


@pytest.mark.parametrize(("attention", "fused"), [("math", False), ("sdpa", True)])
def test_attention_is_by_the_kernel_asked_for(attention, fused, network):
    config, _ = sample_ddp.parse(["--preset", "digits"])
    how = Numerics("fp32", False, attention, False)
    with numerics.applied(how, config, CPU), torch.profiler.profile() as profile, torch.no_grad():
        network(torch.zeros(1, 4, 8, 8), torch.tensor([5]), torch.tensor([1]))
    assert any("flash" in event.key for event in profile.key_averages()) is fused


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> np.ndarray:
    """Digits of the embedded model, by its plain fp32 path."""
    return draw(*digits(tmp_path_factory.mktemp("reference")), "--precision", "fp32", "--no-compile", "--no-vae-slicing")[1]


def digits(folder, **changes) -> list[str]:
    given = {"num-fid-samples": 8, "per-proc-batch-size": 8, "num-sampling-steps": 4, "sample-dir": folder, "run-name": "run"}
    return ["--preset", "digits", *(str(part) for name, value in (given | changes).items() for part in (f"--{name}", value))]


@pytest.mark.parametrize(
    ("given", "mean", "most"),
    [
        (["--precision", "bf16", "--no-compile"], 1.0, 40),
        (["--precision", "fp16", "--no-compile"], 0.2, 10),
        (["--precision", "fp32", "--no-compile", "--attention", "math"], 1e-3, 1),
        (["--precision", "fp32", "--no-compile", "--attention", "products"], 1e-3, 1),
        (["--precision", "fp32", "--no-compile", "--vae-slicing"], 1e-3, 1),
        pytest.param(["--precision", "fp32", "--compile"], 1e-3, 1, marks=pytest.mark.long),
        (["--precision", "bf16", "--compile", "--attention", "products"], 1.0, 40),
        (["--precision", "bf16", "--compile", "--attention", "sdpa"], 1.0, 40),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_way_draws_the_same_digits(given, mean, most, reference, tmp_path, monkeypatch):
    """Within levels that are stated here; another seed is 30 and more away on average."""
    # So that 16 images of 5 heads and 16 tokens come in 3 parts.
    monkeypatch.setattr("fiducial.models.networks.dit.SCORES_AT_ONCE", 6 * 5 * 16**2)
    manifest, images = draw(*digits(tmp_path), *given)
    difference = np.abs(images - reference)
    assert difference.mean() < mean
    assert difference.max() <= most
    identity = manifest["identity"]
    assert [identity["precision"], identity["compile"]] == [given[1], "--compile" in given]
    if "--attention" in given:
        assert identity["attention"] == given[given.index("--attention") + 1]
    assert manifest["sessions"][0]["peak_memory"] > 1e8
    assert not out_of_the_ordinary(manifest)


def test_compiling_is_given_time_also_when_memory_ran_out(tiny_checkpoint, tmp_path, monkeypatch):
    given, sample, found = [0.0], LatentDiffusion.sample, []

    @contextmanager
    def allowing(_: fiducial.Group, seconds: float) -> Iterator[None]:
        given.append(seconds)
        yield
        given.pop()

    def too_large(drawer: LatentDiffusion, network: torch.nn.Module, piece: range, *rest: object) -> torch.Tensor:
        if len(piece) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return sample(drawer, network, piece, *rest)

    monkeypatch.setattr(fiducial.Group, "allowing", allowing)
    monkeypatch.setattr(numerics, "can_compile", lambda _: True)
    monkeypatch.setattr(numerics, "compile_network", lambda *_: found.append(given[-1]))
    monkeypatch.setattr(LatentDiffusion, "sample", too_large)
    manifest, _ = draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=4), "--compile")
    assert [event["event"] for event in out_of_the_ordinary(manifest)] == ["out of memory"]
    assert found == [compilation.COMPILING_SECONDS] * 2


def test_without_a_compiler_a_run_goes_on_and_says_so(tiny_checkpoint, tmp_path):
    command = [*options(tiny_checkpoint, tmp_path, num_fid_samples=4), "--compile"]
    done = run_command("sample_ddp.py", *command, CXX=str(tmp_path / "absent"), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "torch.compile does not work here" in done.stderr
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["identity"]["compile"] is False


@pytest.mark.long
def test_compiled_code_is_kept_in_the_cache_and_a_bad_one_stops_nothing(tiny_checkpoint, tmp_path):
    command = options(tiny_checkpoint, tmp_path, num_fid_samples=4)
    cache = tmp_path / "cache"
    done = run_command("sample_ddp.py", *command, "--compile", timeout=400, TORCHINDUCTOR_CACHE_DIR="", XDG_CACHE_HOME=str(cache))
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert list(cache.glob("fiducial/compiled-*/*/*.so"))
    given = [*command, "--compile", "--run-name", "b"]
    done = run_command("sample_ddp.py", *given, timeout=400, TORCHINDUCTOR_CACHE_DIR="/proc")  # is there, but cannot be written
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["identity"]["compile"] is True


def test_a_network_that_does_not_compile_runs_without(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    _, right = draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=4))

    def broken(network, *_):
        network.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("no such instruction"))

    monkeypatch.setattr(numerics, "can_compile", lambda _: True)
    monkeypatch.setattr(numerics, "compile_network", broken)
    manifest, images = draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=4, run_name="fallen-back"), "--compile")
    assert "warning: torch.compile failed" in capsys.readouterr().err
    assert [event["event"] for event in out_of_the_ordinary(manifest)] == ["not compiled"]
    assert (images == right).all()


@pytest.mark.parametrize(
    ("interval", "batch", "expected"),
    [((0.0, 1.0), 5, {10}), ((0.0383, 1.0), 5, {10, 5}), ((0.0, 1.0), 3, {6, 4})],
    ids=["guided everywhere", "in an interval", "a block of 5 in halves"],
)
def test_every_shape_is_compiled_before_drawing(interval, batch, expected, tiny_checkpoint, monkeypatch):
    """Where compiling fails, a run can then go on without."""
    config, _ = sample_ddp.parse(options(tiny_checkpoint, "unused", per_proc_batch_size=5))
    config, rows = replace(config, guidance_interval=interval), set()
    monkeypatch.setattr(
        numerics, "compile_network", lambda dit, *_: dit.register_forward_pre_hook(lambda _, x: rows.add(len(x[0])))
    )
    how = Numerics("fp32", True, "sdpa", False)
    drawer = digits_source(config, CPU, how)
    drawer.pieces.batch = batch
    drawer.load()
    assert rows == expected


def test_what_overflows_in_fp16_is_drawn_in_fp32(tiny_checkpoint, tmp_path):
    """Weights beyond what fp16 holds; only the rows that they concern are drawn again."""
    state = load_file(tiny_checkpoint)
    state["blocks.0.mlp.fc2.weight"] = state["blocks.0.mlp.fc2.weight"] * 1e7
    state["blocks.0.adaLN_modulation.1.weight"] = torch.zeros_like(state["blocks.0.adaLN_modulation.1.weight"])
    state["blocks.0.adaLN_modulation.1.bias"] = torch.full_like(state["blocks.0.adaLN_modulation.1.bias"], 1e-6)
    save_file(state, tmp_path / "large.safetensors")
    _, right = draw(*options(tmp_path / "large.safetensors", tmp_path, num_fid_samples=4))
    given = options(tmp_path / "large.safetensors", tmp_path, num_fid_samples=4, run_name="half")
    manifest, images = draw(*given, "--precision", "fp16")
    assert out_of_the_ordinary(manifest)[0]["event"] == "not finite, drawn again in fp32"
    assert out_of_the_ordinary(manifest)[0]["indices"] == [0, 1, 2, 3]
    assert np.abs(images - right).max() <= 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_image_that_is_not_finite_is_decoded_in_fp32(precision, tiny_checkpoint, tmp_path, monkeypatch):
    original = Autoencoder.load

    def large(*arguments, **options):
        decoder = original(*arguments, **options)
        if decoder.vae.dtype != torch.float32:
            decoder.vae.decoder.conv_out.bias.data.fill_(float("nan"))
        return decoder

    given = [*options(tiny_checkpoint, tmp_path, num_fid_samples=6), "--precision", precision, "--no-vae-slicing"]
    _, right = draw(*given)
    monkeypatch.setattr(Autoencoder, "load", large)
    manifest, images = draw(*given, "--run-name", "mended")
    events = [(event["event"], event["indices"]) for event in out_of_the_ordinary(manifest)]
    assert events == [("decoded again in fp32", [0, 1, 2, 3]), ("decoded again in fp32", [4, 5])]
    assert np.abs(images - right).mean() < 1


def test_an_image_that_is_not_finite_in_fp32_is_not_written(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(Autoencoder, "forward", lambda _, latents: torch.full((len(latents), 3, 64, 64), float("nan")))
    with pytest.raises(fiducial.UserError, match="the autoencoder gave NaN or infinity for images 0, 1, 2, 3, also in fp32"):
        draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=4))
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(("how", "sizes"), [([], [16, 2]), (["--exact"], [18])])
def test_only_exact_on_a_cpu_decodes_a_block_at_once(how, sizes, tiny_checkpoint, tmp_path, monkeypatch):
    """There its bytes depend on how many are decoded together."""
    found, original = [], Autoencoder.forward
    monkeypatch.setattr(Autoencoder, "forward", lambda vae, latents: found.append(len(latents)) or original(vae, latents))
    given = options(tiny_checkpoint, tmp_path, num_fid_samples=18, per_proc_batch_size=18, num_sampling_steps=1)
    draw(*given, *how)
    assert (found, DECODED_AT_ONCE) == (sizes, 16)


def test_of_what_only_fills_up_the_last_block_nothing_is_asked(tiny_checkpoint, tmp_path, monkeypatch):
    _, right = draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=6))
    original = LatentDiffusion.sample

    def sample(drawer: LatentDiffusion, dit: torch.nn.Module, piece: range, *rest: object) -> torch.Tensor:
        latents = original(drawer, dit, piece, *rest)
        latents[6 - piece.start :] = float("nan") if piece.start == 4 else 0.0
        return latents

    monkeypatch.setattr(LatentDiffusion, "sample", sample)
    manifest, images = draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=6, run_name="filled"))
    assert not out_of_the_ordinary(manifest)
    assert (images == right).all()
    with pytest.raises(fiducial.UserError, match="gave NaN or infinity for image 6, also in fp32"):
        draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=7, run_name="one-more"))


def test_what_is_drawn_again_is_drawn_without_tf32(tiny_checkpoint, monkeypatch):
    config, _ = sample_ddp.parse(options(tiny_checkpoint, "unused"))
    drawer = digits_source(config, CPU, REFERENCE)
    drawer.load()
    seen = []
    latents = torch.zeros(4, 4, 8, 8)

    def again(*_: object) -> torch.Tensor:
        seen.append({switch.fp32_precision for switch in SWITCHES})
        return latents

    monkeypatch.setattr(LatentDiffusion, "latents", again)
    with numerics.applied(replace(REFERENCE, precision="tf32"), config, CPU):
        mended = finite(drawer, range(4), 4, torch.full_like(latents, float("inf")), lambda: None)
        after = {switch.fp32_precision for switch in GPU_SWITCHES}
    assert (mended == latents).all()
    assert (seen, after) == ([{"ieee"}], {"tf32"})


def test_compiled_weights_are_constants_and_every_shape_has_its_code(monkeypatch):
    """More shapes than torch compiles for if it is not told to; what is beyond, it would run uncompiled in silence."""
    config, _ = sample_ddp.parse(["--preset", "digits"])
    network = torch.nn.Linear(4, 4).requires_grad_(False)
    monkeypatch.setattr("torch._dynamo.config.fail_on_recompile_limit_hit", True)
    with numerics.applied(replace(REFERENCE, compile=True), config, CPU), torch.inference_mode():
        numerics.compile_network(network, replace(REFERENCE, compile=True), CPU)
        before = [network(torch.ones(rows, 4)) for rows in range(2, 11)]
        network.weight.zero_()
        assert (network(torch.ones(2, 4)) == before[0]).all()
    assert before[0].abs().max() > 0


def test_outside_the_interval_no_null_half_is_computed(tiny_checkpoint, tmp_path, monkeypatch):
    rows = []
    original = DiT_models["DiT-XS/8"].func

    def spied(*arguments, **choices):
        dit = original(*arguments, **choices)
        dit.register_forward_pre_hook(lambda _, given: rows.append((int(given[1].max()), len(given[0]))))
        return dit

    monkeypatch.setitem(DiT_models, "DiT-XS/8", lambda **choices: spied("XS", 8, **choices))
    few = {"num_fid_samples": 4, "num_sampling_steps": 4, "cfg_scale": 30.0}
    _, everywhere = draw(*options(tiny_checkpoint, tmp_path, **few))
    assert rows == [(999, 8), (666, 8), (333, 8), (0, 8)]
    rows.clear()
    _, inside = draw(*options(tiny_checkpoint, tmp_path, **few, guidance_interval="0.3,0.7", run_name="inside"))
    assert rows == [(999, 4), (666, 8), (333, 8), (0, 4)]
    _, nowhere = draw(*options(tiny_checkpoint, tmp_path, **few | {"cfg_scale": 1.0}, run_name="nowhere"))
    _, empty = draw(*options(tiny_checkpoint, tmp_path, **few, guidance_interval="0.5,0.5", run_name="empty"))
    assert (empty == nowhere).all()
    assert np.abs(inside - everywhere).max() > 1
    assert np.abs(inside - nowhere).max() > 1


@pytest.mark.parametrize("sampler", ["dpm-solver++", "unipc", "heun"])
def test_solvers_draw_from_the_command_line(sampler, tiny_checkpoint, tmp_path):
    manifest, images = draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=6, sampler=sampler, num_sampling_steps=5))
    assert manifest["identity"]["sampler"] == sampler
    assert images.std() > 1


def test_tiles_are_part_of_the_run(tiny_checkpoint, tmp_path, monkeypatch):
    enabled = []
    monkeypatch.setattr("diffusers.AutoencoderKL.enable_tiling", lambda _: enabled.append(True))
    draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=4))
    assert not enabled
    with pytest.raises(fiducial.UserError, match="vae_tiling is False there and True here"):
        draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=4), "--vae-tiling")
    draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=4, run_name="tiles"), "--vae-tiling")
    assert enabled


def test_what_is_offloaded_is_on_the_device_only_for_its_work(tiny_checkpoint):
    """As copies of weights that stay where they are: nothing is copied back. The device is the CPU under another name."""
    config, _ = sample_ddp.parse([*options(tiny_checkpoint, "unused", num_fid_samples=4), "--offload", "both"])
    drawer = digits_source(config, torch.device("cpu", 0), REFERENCE)
    drawer.load()
    weights = drawer.networks.network.pos_embed, drawer.networks.decoder.vae.decoder.conv_in.weight
    before, values, seen = [one.data_ptr() for one in weights], [one.clone() for one in weights], []

    def at_work(*_: object) -> None:
        seen.append([one.data_ptr() != place for one, place in zip(weights, before, strict=True)])

    drawer.networks.network.register_forward_pre_hook(at_work)
    drawer.networks.decoder.register_forward_pre_hook(at_work)
    drawer.networks.decoder.register_forward_hook(lambda *_: (weights[1].zero_(), None)[1])
    for _ in range(2):
        assert len(list(drawer.blocks([0], 4, lambda: None))) == 1
        at_work()
    assert seen == [*[[True, False]] * 3, [False, True], [False, False]] * 2
    assert all(map(torch.equal, weights, values))


@pytest.mark.parametrize("how", [[], ["--compile"]], ids=["", "compiled"])
def test_the_networks_are_gone_before_an_evaluation(how, tiny_checkpoint, tmp_path, monkeypatch):
    """Whose memory it may need."""
    networks, gone, resets, load = [], [], [], Networks.load

    def loaded(self: Networks) -> None:
        load(self)
        networks.extend(map(weakref.ref, (self.network, self.decoder, self.network_in_fp32())))

    monkeypatch.setattr(numerics, "can_compile", lambda _: True)
    monkeypatch.setattr(numerics, "compile_network", lambda *_: None)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))
    monkeypatch.setattr(Networks, "load", loaded)
    monkeypatch.setattr(memory, "release", lambda _: gone.append([one() is None for one in networks]))
    draw(*options(tiny_checkpoint, tmp_path, num_fid_samples=4), *how)
    assert gone == [[True, True, True]]
    assert bool(resets) == bool(how)


def test_a_process_gets_its_part_of_the_memory(monkeypatch):
    monkeypatch.setattr(memory, "_available", lambda: 1000)
    assert memory.room(CPU, 100) == 1000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.room(CPU, 100) == (1000 - 300) // 4


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        # version 2: the limit is the job's, two levels up; its step and the root have none
        ("0::/job/step/task\n", {"job/memory.max": 900, "job/memory.current": 200, "job/step/memory.max": "max"}, [700]),
        # two limits, and one exceeded
        ("0::/a/b\n", {"a/memory.max": 9, "a/memory.current": 2, "a/b/memory.max": 5, "a/b/memory.current": 6}, [0, 7]),
        # version 1 beside an empty version 2
        (
            "4:cpu,memory:/job\n2:cpuset:/job\n0::/\n",
            {"memory/job/memory.limit_in_bytes": 500, "memory/job/memory.usage_in_bytes": 100},
            [400],
        ),
        # a container sees its own group as the root
        ("0::/host/path\n", {"memory.max": 50, "memory.current": 20}, [30]),
        ("", {}, []),
    ],
)
def test_memory_limits_of_every_enclosing_group_count(membership, files, left, tmp_path):
    (tmp_path / "membership").write_text(membership)
    for name, value in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(f"{value}\n")
    assert list(memory._left_by_groups(tmp_path / "membership", tmp_path / "root")) == left


def test_a_run_begun_with_other_numerics_is_named(tiny_checkpoint, tmp_path, capsys):
    given = options(tiny_checkpoint, tmp_path, num_fid_samples=4)[len(PLAIN) :]
    at = given.index("--run-name")
    given = [*given[:at], *given[at + 2 :]]
    draw(*given, "--no-compile", "--precision", "bf16")
    assert "note:" not in capsys.readouterr().out
    draw(*given, "--no-compile", "--precision", "fp32")
    assert "is the same run with precision bf16 (here fp32)" in capsys.readouterr().out
    draw(*given, "--no-compile", "--precision", "fp32", "--cfg-scale", "2.5")
    assert "note:" not in capsys.readouterr().out
