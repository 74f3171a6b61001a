"""Networks are known by what they make of pure noise: those that predict it are drawn from, others refused with a sentence."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS, PLAIN, contents, digits_source, run_command
from safetensors.torch import load_file, save_file
from torch import Tensor

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.models import probe
from fiducial.models.checkpoints import checkpoint
from fiducial.models.networks.table import NETWORKS
from fiducial.models.probe import Response, compare, require, respond
from fiducial.sampling.source import numerics
from fiducial.sampling.source.latent_diffusion import LatentDiffusion
from fiducial.sampling.source.offload import Waiting
from fiducial.sampling.store.lock import LOCK

CPU = torch.device("cpu")
IMAGE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))  # of root mean square 1
FILE, DIT = Path("a.pt"), NETWORKS["DiT"]


class Stub:
    """A network of four channels whose output is any function of input and timestep; the variance it adds is not to be read."""

    in_channels = 4

    def __init__(self, predict: Callable[[Tensor, float], Tensor]):
        self._predict = predict

    def __call__(self, x: Tensor, t: Tensor, _: Tensor) -> Tensor:
        return torch.cat([self._predict(x, t.item()), torch.full_like(x, 1e6)], dim=1)


def made_by(predict: Callable[[Tensor, float], Tensor], size: int = 8) -> Response:
    return respond(Stub(predict), 10, size, CPU, False)


def chain(t: float) -> tuple[float, float]:
    """Alpha and sigma of DiT's chain."""
    alpha = math.prod(1 - beta for beta in np.linspace(1e-4, 0.02, 1000)[: int(t) + 1]) ** 0.5
    return alpha, math.sqrt(1 - alpha**2)


def noise(x: Tensor, t: float) -> Tensor:
    """By a network that takes every latent for IMAGE and noise."""
    alpha, sigma = chain(t)
    return (x - alpha * IMAGE) / sigma


def velocity(x: Tensor, t: float) -> Tensor:
    """The same, for the straight path between IMAGE and noise; also right on a clock of 1,000."""
    return (x - (1 - t / 1000) * IMAGE) / (t / 1000) - IMAGE


def velocity_of_the_chain(x: Tensor, t: float) -> Tensor:
    alpha, sigma = chain(t)
    return alpha * noise(x, t) - sigma * IMAGE


WRONG = {
    "velocity": (velocity, "does not predict noise at t = 999: correlation 0.7"),
    "velocity from noise on": (lambda x, t: -velocity(x, t), "does not predict noise at t = 999: correlation -0.7"),
    "velocity of the chain": (velocity_of_the_chain, "correlation 0.0"),
    "image": (lambda x, _: IMAGE.expand_as(x), "correlation -0.0"),
    "a constant": (lambda x, _: torch.ones_like(x), "correlation 0.00, about 1 expected"),
    "nothing": (lambda x, _: torch.zeros_like(x), "is untrained: of pure noise at t = 999 it makes all but zero, 0 of its"),
    "all but nothing": (lambda x, _: 0.01 * x, "is untrained: of pure noise at t = 999 it makes all but zero, 0.01 of its"),
    "ten times the noise": (
        lambda x, _: 10 * x,
        "at t = 999, but a multiple of it: its output is 10 times as large as its input",
    ),
    "infinity": (lambda x, _: x / 0, "makes NaN or infinity, also in fp32"),
    "one NaN halfway": (lambda x, t: x if t == 999 else x.index_fill(3, torch.tensor([2]), math.nan), "makes NaN or infinity"),
}


@pytest.mark.parametrize(("predict", "said"), WRONG.values(), ids=WRONG)
def test_what_does_not_predict_noise_is_told(predict, said):
    with pytest.raises(UserError) as refused:
        require(made_by(predict), FILE, DIT)
    assert str(refused.value).startswith("a.pt: ")
    assert said in str(refused.value)
    assert "--no-probe" in str(refused.value)


def test_what_predicts_noise_passes_and_its_correlation_is_the_closed_form():
    found = made_by(noise, 8)
    require(found, FILE, DIT)
    assert found.correlation > 0.9999
    assert found.size == pytest.approx(1, abs=0.01)
    alpha, _ = chain(500)
    assert found.halfway == pytest.approx(1 / math.sqrt(1 + alpha**2), abs=0.01)
    assert probe.doubt(found.halfway, found.size) is None


def test_a_network_right_at_the_end_and_of_another_chain_is_doubted():
    """Half image, half noise halfway, as on a cosine schedule."""
    found = made_by(lambda x, t: noise(x, t) if t == 999 else (x - math.sqrt(0.5) * IMAGE) / math.sqrt(0.5))
    require(found, FILE, DIT)
    assert "correlation 0.8" in probe.doubt(found.halfway, found.size)


@pytest.mark.parametrize(("size", "said"), [(0.79, "0.79"), (1.26, "1.26"), (1.99, "1.99"), (0.81, None), (1.24, None)])
def test_a_size_that_is_not_usual_is_doubted(size, said):
    found = made_by(lambda x, _: size * x)
    require(found, FILE, DIT)
    doubt = probe.doubt(found.halfway, found.size)
    assert f"what this network makes of pure noise is {said} times as large as its input" in doubt if said else doubt is None


def test_numbers_by_numpy_and_by_hand():
    x, y = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    y = y + 0.3 * x
    correlation, size = compare(x, y.half())
    assert correlation == pytest.approx(np.corrcoef(x.flatten(), y.half().flatten())[0, 1], abs=1e-6)
    assert size == pytest.approx((y.square().mean() / x.square().mean()).sqrt().item(), rel=1e-3)
    assert compare(x, -2 * x + 1)[0] == pytest.approx(-1)
    assert compare(x, torch.zeros_like(x)) == (0, 0)
    assert all(map(math.isnan, compare(x, torch.full_like(x, math.nan))))


def test_the_digits_are_known_and_nothing_random_is_disturbed():
    network = checkpoint.read(DIGITS / "dit.safetensors").load("DiT-XS/2", 10, CPU)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    found = respond(network, 10, 8, CPU, True)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()
    assert found.correlation == pytest.approx(0.99995, abs=2e-5)
    assert found.recorded() == respond(network, 10, 8, CPU, False).recorded()
    assert found.size == pytest.approx(1.00015, abs=2e-5)
    assert found.halfway == pytest.approx(0.9823, abs=2e-4)
    assert found.null.correlation == pytest.approx(0.9999, abs=2e-4)
    require(found, FILE, DIT)


def parsed(*arguments: object) -> tuple:
    return sample_ddp.parse(["--preset", "digits", *map(str, arguments)])[0]


@pytest.mark.parametrize(
    "given", [("--precision", "bf16"), ("--precision", "fp16"), ("--precision", "bf16", "--attention", "sdpa")]
)
def test_a_network_in_half_is_asked_as_it_is(given):
    config = parsed("--no-compile", *given)
    drawer = digits_source(config, CPU, numerics.choices(config, CPU)[0])
    drawer.load()
    assert drawer.networks.response.correlation == pytest.approx(0.9999, abs=2e-4)


def changed(folder: Path, **factors: float) -> Path:
    """The digits' network with some weights multiplied; `__` stands for a dot."""
    state = load_file(DIGITS / "dit.safetensors")
    for name, factor in factors.items():
        key = name.replace("__", ".")
        state[key] = state[key] * factor
    save_file(state, folder / "changed.safetensors")
    return folder / "changed.safetensors"


def opposite(folder: Path) -> Path:
    """A network that predicts the negative of noise, as a SiT does that counts from noise on."""
    return changed(folder, final_layer__linear__weight=-1, final_layer__linear__bias=-1)


def test_what_overflows_in_half_is_asked_in_fp32(tmp_path):
    """As it is then drawn: its MLP's output is beyond fp16, and its gate makes it small again."""
    state = load_file(DIGITS / "dit.safetensors")
    gate = slice(5 * 160, 6 * 160)
    for kind in ("weight", "bias"):
        state[f"blocks.0.mlp.fc2.{kind}"] *= 1e6
        state[f"blocks.0.adaLN_modulation.1.{kind}"][gate] /= 1e6
    save_file(state, tmp_path / "large.safetensors")
    config = parsed("--no-compile", "--precision", "fp16", "--ckpt", tmp_path / "large.safetensors")
    drawer = digits_source(config, CPU, numerics.choices(config, CPU)[0])
    assert not respond(drawer.networks.load_network(drawer.how), 10, 8, CPU, False).is_finite
    drawer.load()
    assert drawer.networks.response.correlation == pytest.approx(0.99995, abs=2e-5)


def test_an_offloaded_network_is_asked_on_its_device_and_goes_back(monkeypatch):
    config, device, moves = parsed("--offload", "model"), torch.device("cpu", 0), []

    @contextmanager
    def at_work(*_: object) -> Iterator[None]:
        moves.append("to work")
        yield
        moves.append("back")

    monkeypatch.setattr(Waiting, "at_work", at_work)
    monkeypatch.setattr(probe, "respond", lambda *_: moves.append("asked") or Response(1.0, 1.0, 1.0))
    digits_source(config, device, numerics.REFERENCE).load()
    assert moves == ["to work", "asked", "back"]


def test_nothing_is_compiled_for_the_question(monkeypatch):
    calls = []
    monkeypatch.setattr(probe, "respond", lambda *_: calls.append("asked") or Response(1.0, 1.0, 1.0))
    monkeypatch.setattr(LatentDiffusion, "compile", lambda _: calls.append("compiled"))
    how = numerics.Numerics("fp32", True, "sdpa", False)
    digits_source(parsed(), CPU, how).load()
    assert calls == ["asked", "compiled"]


def with_null_row(folder: Path, factor: float) -> Path:
    """The digits' network with the row of its null label multiplied."""
    state = load_file(DIGITS / "dit.safetensors")
    state["y_embedder.embedding_table.weight"][-1] *= factor
    save_file(state, folder / "null.safetensors")
    return folder / "null.safetensors"


@pytest.mark.parametrize(
    ("factor", "said"), [(math.nan, "makes NaN or infinity"), (100, "does not predict noise at t = 999: correlation ")]
)
@pytest.mark.parametrize("needed", [("--cfg-scale", 1.5), ("--cfg-scale", 1, "--labels", "null")], ids=["guided", "null"])
def test_the_null_label_is_asked_for_where_a_run_needs_it(factor, said, needed, tmp_path):
    def load(*given: object) -> None:
        config = parsed("--exact", "--ckpt", with_null_row(tmp_path, factor), *given)
        digits_source(config, CPU, numerics.REFERENCE).load()

    load("--cfg-scale", 1)
    with pytest.raises(UserError, match=r"null\.safetensors: with the null label, .*; --cfg-scale 1\.0 draws classes") as refused:
        load(*needed)
    assert said in str(refused.value)


def small(folder: Path, *more: object, count: int = 4) -> list[str]:
    given = ("--preset", "digits", *PLAIN, "--num-fid-samples", count, "--per-proc-batch-size", 2, "--num-sampling-steps", 2)
    return [*map(str, (*given, "--sample-dir", folder, "--run-name", "run", "--device", "cpu", *more))]


def main(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["sample_ddp.py", *arguments])
    sample_ddp.main()


def refused(monkeypatch, capsys, *arguments: str) -> str:
    """The sentence with which a command ends."""
    with pytest.raises(SystemExit) as ended:
        main(monkeypatch, *arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return error


ONLINE = ("--ref", "digits", "--evaluate-online")


@pytest.mark.parametrize("more", [(), ONLINE, ("--dry-run",)], ids=["files", "online", "dry"])
def test_another_family_is_refused_before_there_is_a_folder(more, tmp_path, monkeypatch, capsys):
    said = refused(monkeypatch, capsys, *small(tmp_path / "samples", "--ckpt", opposite(tmp_path), *more))
    assert "changed.safetensors: this network does not predict noise at t = 999: correlation -1.00, about 1 expected" in said
    assert "a SiT or REPA checkpoint has the same keys" in said
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize("more", [(), ONLINE], ids=["files", "online"])
def test_what_was_found_stands_in_the_manifest_and_not_in_the_identity(more, tmp_path, monkeypatch):
    main(monkeypatch, *small(tmp_path, *more))
    path = tmp_path / "run-online" / "online.json" if more else tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["probe"]["correlation_at_999"] == pytest.approx(0.99995, abs=2e-5)
    assert manifest["options"]["probe"] is True
    assert "probe" not in manifest["identity"]


def test_who_means_it_draws_and_nothing_drawn_hangs_on_the_question(tmp_path, monkeypatch):
    for name, more in (("asked", ()), ("unasked", ("--no-probe",))):
        main(monkeypatch, *small(tmp_path / name, *more))
    assert contents(tmp_path / "asked") == contents(tmp_path / "unasked")
    asked, unasked = (json.loads((tmp_path / name / "run" / "manifest.json").read_text()) for name in ("asked", "unasked"))
    assert asked["fingerprint"] == unasked["fingerprint"]
    assert "probe" not in unasked
    main(monkeypatch, *small(tmp_path / "other", "--ckpt", opposite(tmp_path), "--no-probe"))
    assert len(contents(tmp_path / "other")) == 5


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK}


@pytest.mark.parametrize("more", [(), ONLINE], ids=["files", "online"])
def test_a_finished_run_that_is_to_grow_asks_first_and_loses_nothing(more, tmp_path, monkeypatch, capsys):
    folder, given = tmp_path / "samples", ("--ckpt", opposite(tmp_path), *more)
    main(monkeypatch, *small(folder, *given, "--no-probe"))
    before = files(folder)
    said = refused(monkeypatch, capsys, *small(folder, *given, count=6))
    assert "correlation -1.00" in said
    assert files(folder) == before
    loaded = []
    monkeypatch.setattr(LatentDiffusion, "load", lambda _: loaded.append("loaded"))
    main(monkeypatch, *small(folder, *given))  # nothing is to be drawn
    assert not loaded


@pytest.mark.long
def test_a_rank_whose_own_weights_are_wrong_ends_the_run(tmp_path):
    done = run_command("tests/faulty.py", "other-weights", *small(tmp_path), ranks=2)
    assert done.returncode != 0
    said = next(line for line in done.stderr.splitlines() if "does not predict noise" in line)
    assert said.startswith("error (rank 1")
    assert "correlation -1.00" in said
    assert "Traceback" not in done.stderr.partition("error (rank 1")[0]


def test_doubt_is_said_once_and_drawing_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probe, "respond", lambda *_: Response(0.99, 1.5, 0.75))
    main(monkeypatch, *small(tmp_path))
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert said.startswith(f"warning: {DIGITS / 'dit.safetensors'}: at t = 999 ")
    assert "; at t = 500 " in said
    assert len(contents(tmp_path)) == 5
    assert fiducial.printable(said) == said
