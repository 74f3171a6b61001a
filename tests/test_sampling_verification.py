"""Verification of numerics: what goes wrong on a fast path is found, and what is only less precise passes."""

import copy
import itertools
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import PLAIN, digits_source, draw_files, options, randomised
from safetensors.torch import load_file, save_file

import fiducial
import sample_ddp
from fiducial import Cause, Stopped, UserError
from fiducial.models import DiT_models
from fiducial.precision import SWITCHES, float32_products
from fiducial.sampling import plan
from fiducial.sampling.source import checking, numerics, verification
from fiducial.sampling.source.checking import Check, FirstImages, expect
from fiducial.sampling.source.latent_diffusion import LatentDiffusion
from fiducial.sampling.source.numerics import REFERENCE, Numerics
from fiducial.sampling.source.verification import BOUNDS, Errors

CPU = torch.device("cpu")
BF16 = Numerics("bf16", False, "products", True)
BLOCK = 4  # images that are drawn at once


class Sources:
    """Sources that draw with one network, which is told by its name."""

    def __init__(self, name: str, seed: int = 0, steps: int = 50):
        self.given = ["--preset", "digits", "--per-proc-batch-size", str(BLOCK), "--num-sampling-steps", str(steps)]
        self.given += ["--global-seed", str(seed), "--device", "cpu"]
        self.network = None if name == "digits" else randomised(DiT_models["DiT-B/2"](input_size=8, num_classes=10))
        self.source = self.by(REFERENCE)
        with torch.inference_mode():
            self.expected = expect(self.source, whole=False)

    def by(self, how: Numerics, **changes: object) -> LatentDiffusion:
        config, _ = sample_ddp.parse(self.given)
        source = digits_source(replace(config, **changes), CPU, how)
        if self.network is None:
            source.networks.load()
        else:
            network = copy.deepcopy(self.network)
            source.networks.network = network if how is REFERENCE else network.to_half(how.dtype)
            source.networks.load_network = lambda _: self.network
            source.networks.decoder = source.networks._load_decoder(how)
        return source

    def drawing(self, source: LatentDiffusion | None = None) -> FirstImages:
        source = source or self.source
        return FirstImages(source, BLOCK, source.networks.network, checking.decoder_of(source))

    def errors(self, by: object) -> Errors:
        return verification.compare(self.expected, by, with_latents=False)


@pytest.fixture(scope="module", params=["digits", "DiT-B/2"])
def sources(request):
    return Sources(request.param)


class Wrong:
    """A drawing whose evaluations are as a fault makes them of the call before and this one."""

    def __init__(self, right: FirstImages, fault):
        self._right, self._fault, self._before, self.decode = right, fault, None, right.decode

    def evaluate(self, x, t):
        before, self._before = self._before or (x, t), (x, t)
        return self._fault(self._right, before, (x, t))


FAULTS = {
    "the output of the step before": lambda right, before, _: right.evaluate(*before),
    "the time of the step before": lambda right, before, now: right.evaluate(now[0], before[1]),
    "a graph is replayed before its input is copied": lambda right, before, now: right.evaluate(before[0], now[1]),
    "overflow": lambda right, _, now: right.evaluate(*now).clamp(min=3.0).sub(3.0).mul(torch.inf),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_fast_path_are_found(sources, fault):
    assert sources.errors(Wrong(sources.drawing(), FAULTS[fault])).why_not(BOUNDS["bf16"])


def test_labels_that_are_off_by_one_are_found(sources, monkeypatch):
    right = plan.labels
    monkeypatch.setattr(plan, "labels", lambda *given: (right(*given) + 1) % 10)
    assert "off by" in sources.errors(sources.drawing(sources.by(REFERENCE))).why_not(BOUNDS["bf16"])


def test_guidance_of_three_channels_for_four_is_found(sources):
    assert "off by" in sources.errors(sources.drawing(sources.by(REFERENCE, cfg_channels=3))).why_not(BOUNDS["bf16"])


@pytest.mark.parametrize(("name", "seed"), [*(("digits", seed) for seed in range(5)), ("DiT-B/2", 5)])
def test_bf16_passes(name, seed):
    sources = Sources(name, seed)
    found = sources.errors(sources.drawing(sources.by(BF16)))
    assert found.why_not(BOUNDS["bf16"]) is None
    assert max(found.prediction, found.late) > 1e-4  # or it was compared with itself
    assert name != "digits" or found.pixels > 0.01


def test_a_whole_block_and_its_repeats_are_compared():
    sources, found = Sources("digits", steps=6), []
    source = sources.by(BF16)
    by = sources.drawing(source)
    with torch.inference_mode():
        expected = expect(sources.source, whole=True)
    found.append(verification.compare(expected, by, with_latents=True, twice=True))
    latents = by.latents()
    by.latents = lambda: latents * 1.1
    found.append(verification.compare(expected, by, with_latents=True))
    drawn = iter([latents, latents + 1e-6])
    by.latents = lambda: next(drawn)
    found.append(verification.compare(expected, by, with_latents=True, twice=True))
    reasons = [errors.why_not(BOUNDS["bf16"]) for errors in found]
    assert reasons[0] is None
    assert 1e-4 < found[0].latents < 0.02
    assert "latents after all steps are off by 0.1 against fp32 (0.02 is allowed)" in reasons[1]
    assert "the same inputs give other outputs the second time" in reasons[2]


def test_pixels_that_are_off_or_not_a_number_are_told():
    good = Errors(0.01, 0.02, 0.01, 0.2, True, 1.0)
    assert good.why_not(BOUNDS["bf16"]) is None
    assert "latents" in good.why_not(BOUNDS["tf32"])
    assert "pixels are off by 0.6 levels in the mean against fp32" in replace(good, pixels=0.6).why_not(BOUNDS["bf16"])
    assert "t < 0.1 are not finite" in replace(good, late=float("nan")).why_not(BOUNDS["bf16"])


@pytest.fixture
def drawn(tiny_checkpoint, tmp_path, monkeypatch):
    """Draws a run of a few images as a person would, on a processor with bfloat16; the verdicts are in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(numerics, "cpu_flags", lambda: "flags : avx512_bf16")

    def draw(*given: str, count: int = 6, compiled: tuple[str, ...] = ("--no-compile",)) -> dict:
        arguments = options(tiny_checkpoint, tmp_path, num_fid_samples=count)[len(PLAIN) :]
        config, _ = sample_ddp.parse([*arguments, *compiled, *given])
        return json.loads((draw_files(config, fiducial.init("cpu")).with_suffix("") / "manifest.json").read_text())

    return draw


@pytest.fixture
def compared(monkeypatch):
    """The precisions that were compared, and those that are to fail."""
    asked, failing, right = [], set(), verification.compare

    def compare(expected: object, by: FirstImages, *given: object, **more: object) -> Errors:
        precision = "bf16" if by._network.blocks[0].attn.qkv.weight.dtype == torch.bfloat16 else "fp32"
        asked.append(precision)
        found = right(expected, by, *given, **more)
        return replace(found, prediction=0.5) if precision in failing else found

    monkeypatch.setattr(verification, "compare", compare)
    return asked, failing


def said(capsys) -> str:
    return "".join(capsys.readouterr())


def test_what_passes_is_drawn_with_and_found_once(drawn, compared, capsys):
    manifest = drawn("--run-name", "a")
    assert manifest["identity"]["precision"] == "bf16"
    (event,) = manifest["sessions"][0]["events"]
    assert (event["event"], event["numerics"]["precision"]) == ("verified", "bf16")
    assert 0 < event["errors"]["prediction"] < 0.03
    assert "verified bf16, not compiled against fp32: evaluations off by" in said(capsys)
    drawn("--run-name", "b", "--global-seed", "1")
    assert "(found before on this device)" in said(capsys)
    assert compared[0] == ["bf16"]
    drawn("--run-name", "c", "--check", "full")
    assert compared[0] == ["bf16"] * 2
    assert drawn("--run-name", "d", "--check", "off")["sessions"][0]["events"] == []


def test_what_does_not_pass_falls_back_and_is_recorded(drawn, compared, capsys):
    compared[1].add("bf16")
    manifest = drawn()
    assert manifest["identity"]["precision"] == "fp32"
    (event,) = manifest["sessions"][0]["events"]
    assert (event["event"], event["numerics"]["precision"], event["errors"]["prediction"]) == ("not verified", "bf16", 0.5)
    assert "note: bf16, not compiled is not drawn with here: outputs of the network at t >= 0.1 are off by 0.5" in said(capsys)
    compared[1].clear()
    grown = drawn(count=8)  # the run keeps what it was begun with, though the other would pass now
    assert grown["identity"] == manifest["identity"]


def test_a_verdict_is_of_these_weights_and_what_failed_is_looked_at_again(drawn, compared, tiny_checkpoint, tmp_path):
    asked, failing = compared
    failing.add("bf16")
    drawn("--run-name", "a")
    failing.clear()
    assert drawn("--run-name", "b")["identity"]["precision"] == "bf16"
    assert asked == ["bf16"] * 2
    weights = load_file(tiny_checkpoint)
    weights["final_layer.linear.bias"] += 0.01
    save_file(weights, tmp_path / "other.safetensors")
    drawn("--run-name", "c", "--ckpt", str(tmp_path / "other.safetensors"))
    assert asked == ["bf16"] * 3


def test_a_run_goes_on_with_its_own_numerics_or_not_at_all(drawn, compared):
    drawn()
    compared[1].add("bf16")
    with pytest.raises(UserError, match="run was begun so, and --check off goes on with it all the same"):
        drawn("--check", "full", count=8)
    assert drawn("--check", "off", count=8)["num_fid_samples"] == 8


def test_what_a_person_asks_for_is_warned_of_and_drawn(drawn, compared, capsys):
    compared[1].add("bf16")
    manifest = drawn("--precision", "bf16")
    assert manifest["identity"]["precision"] == "bf16"
    assert manifest["sessions"][0]["events"][0]["event"] == "not verified"
    assert "warning: bf16, not compiled is not drawn with here" in said(capsys)
    assert drawn("--precision", "bf16", count=8)["num_fid_samples"] == 8


def test_where_the_compiler_fails_what_is_next_is_drawn_with(drawn, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(numerics, "can_compile", lambda _: True)
    monkeypatch.setattr(numerics, "compile_network", fail)
    manifest = drawn(compiled=())
    assert (manifest["identity"]["precision"], manifest["identity"]["compile"]) == ("bf16", False)
    events = [(event["event"], event.get("reason")) for event in manifest["sessions"][0]["events"]]
    assert events[0] == ("not compiled", "torch.compile failed (no such instruction)")
    assert events[1][0] == "verified"
    assert "note: bf16, compiled is not drawn with here: torch.compile failed" in said(capsys)


def test_a_run_that_was_begun_compiled_is_found_where_nothing_compiles(drawn, monkeypatch):
    monkeypatch.setattr(numerics, "can_compile", lambda _: True)
    monkeypatch.setattr(numerics, "compile_network", lambda *_: None)
    assert drawn(compiled=())["identity"]["compile"] is True
    monkeypatch.setattr(numerics, "can_compile", lambda _: False)
    assert drawn(compiled=())["identity"]["compile"] is True  # nothing is missing
    for given in ((), ("--compile",)):
        with pytest.raises(
            UserError, match=r"begun with compiled networks, and torch\.compile does not work here; go on with it"
        ):
            drawn(compiled=given, count=8)


def test_a_run_that_was_begun_otherwise_goes_on_so_and_that_is_said(drawn, capsys):
    drawn("--precision", "fp32")
    assert "was begun with" not in said(capsys)
    assert drawn(count=8)["identity"]["precision"] == "fp32"
    assert re.search(r"note: .*run was begun with attention sdpa, precision fp32, vae_slicing False, and goes", said(capsys))


class Ranks:
    """Rank 1 of two, and what rank 0 has told."""

    world_size, rank, is_main = 2, 1, False

    def __init__(self, *told: object):
        self._told = itertools.cycle([len(told), *told])

    def once(self, _: object) -> object:
        return json.loads(json.dumps(next(self._told)))


@pytest.mark.parametrize("off", [0.0, 1e-3])
def test_a_rank_whose_products_are_wrong_in_the_third_digit_is_named(sources, off):
    told = [checking.told(*one) for one in sources.expected.evaluations]
    source = sources.by(REFERENCE)
    network = source.networks.network
    source.networks.load_network = lambda _: network
    with torch.no_grad():
        for block in network.blocks:
            block.attn.qkv.weight.mul_(1 + off)
    precisions, forward = set(), network.forward
    network.forward = lambda *given: (precisions.update(switch.fp32_precision for switch in SWITCHES), forward(*given))[1]
    check = Check(Ranks(*told))
    if off:
        with pytest.raises(UserError, match=r"the processor of rank 1 on .* does not multiply as rank 0's: the network's output"):
            check.on_all(source, True)
    else:
        with float32_products(tf32=True):  # as a run by TF32 has it
            check.on_all(source, True)
    assert precisions == {"ieee"}
    check.on_all(source, False)  # it draws nothing


def test_without_float32_nothing_is_verified_against_it(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    config = SimpleNamespace(check="quick", exact=False)
    source = SimpleNamespace(config=config, how=BF16, device=torch.device("cuda", 0))
    with pytest.raises(
        UserError, match="NVIDIA_TF32_OVERRIDE=1 leaves no float32 to verify bf16, not compiled against; unset it"
    ):
        Check(Ranks()).on_main(source, 6)


def test_what_the_other_ranks_are_told_is_bounded_whatever_an_image_has():
    x = torch.zeros(4, 16, 128, 128)
    kept, _, out = checking.told(x, 0.5, x)
    assert kept[0] == out[0] == [1, 16, 128, 128]
    assert sum(len(text) for _, text in (kept, out)) < 8 << 20


@pytest.mark.parametrize("room", [1, 0])
def test_where_fp32_does_not_fit_beside_fewer_images_or_none_are_verified(room, drawn, monkeypatch, capsys):
    """And the run, which takes less, goes on."""
    right, asked = FirstImages.few_steps, []

    def few_steps(self: FirstImages, look: object) -> torch.Tensor:
        asked.append(len(self._piece))
        if asked[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(self, look)

    monkeypatch.setattr(FirstImages, "few_steps", few_steps)
    (event,) = drawn()["sessions"][0]["events"]
    assert asked == [4, 1]
    assert event["event"] == ("verified" if room else "not verified")
    assert ("is not verified: memory does not do for fp32 beside it" in said(capsys)) == (not room)


@pytest.mark.parametrize("slicing", [True, False])
def test_what_is_decoded_for_the_verdict_is_as_much_as_while_drawing(slicing):
    sources, decoded = Sources("digits"), []
    source = sources.by(replace(BF16, vae_slicing=slicing))
    decode = source.networks.decode
    source.networks.decode = lambda latents: (decoded.append(len(latents)), decode(latents))[1]
    found = sources.errors(sources.drawing(source))
    assert decoded == [2 if slicing else BLOCK] * 2
    assert found.why_not(BOUNDS["bf16"]) is None


def test_a_stop_while_compiling_is_a_stop(drawn, monkeypatch):
    """And no fault of the compiler, which would have a run begun with slower numerics for good."""

    def stop(*_: object) -> None:
        raise Stopped(Cause("stopped", "stopped by SIGTERM", 0))

    monkeypatch.setattr(numerics, "can_compile", lambda _: True)
    monkeypatch.setattr(numerics, "compile_network", stop)
    for check in ("quick", "off"):
        with pytest.raises(Stopped):
            drawn("--check", check, compiled=())


def test_what_cannot_be_compiled_though_asked_for_is_drawn_without(drawn, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(numerics, "can_compile", lambda _: True)
    monkeypatch.setattr(numerics, "compile_network", fail)
    manifest = drawn("--precision", "bf16", compiled=("--compile",))
    events = manifest["sessions"][0]["events"]
    assert [event["event"] for event in events] == ["not compiled", "verified"]
    assert events[1]["numerics"]["compile"] is False  # and what draws in its place is verified
    assert "torch.compile failed, so this rank runs without it (no such instruction)" in said(capsys)
