"""Runs as a user makes them, on files: torchrun, several ranks, kills, and what is equal to the byte afterwards."""

import json
import os
import shlex
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo.config
import torch._inductor.config
from conftest import DIGITS, contents, draw_files, options, run_command
from diffusers import AutoencoderKL
from odd_files import left_by_a_dead_process
from PIL import Image

import fiducial
import sample_ddp
from fiducial import UserError, version
from fiducial.diffusion.prediction import from_noise
from fiducial.diffusion.samplers import SAMPLERS, Option, sample_ddim
from fiducial.diffusion.schedule import Schedule
from fiducial.models.checkpoints import checkpoint
from fiducial.precision import SWITCHES
from fiducial.sampling import forecast
from fiducial.sampling.identity import Identity
from fiducial.sampling.noise import standard_normal
from fiducial.sampling.options.file import recorded
from fiducial.sampling.source import latent_diffusion, numerics


def draw_here(*arguments: str) -> Path:
    """A run in this process, on one rank."""
    config, _ = sample_ddp.parse(list(arguments))
    return draw_files(config, fiducial.init("cpu"))


def test_weights_are_read_and_hashed_once(tiny_checkpoint, tmp_path, monkeypatch):
    own, seen = tmp_path / "own.safetensors", []
    shutil.copy(tiny_checkpoint, own)
    for name in ("read_safetensors", "file_sha256"):
        original = getattr(checkpoint, name)
        spied = lambda path, name=name, original=original: (seen.append(name), original(path))[1]  # noqa: E731
        monkeypatch.setattr(checkpoint, name, spied)
    draw_here(*options(own, tmp_path / "samples", num_fid_samples=4))
    assert sorted(seen) == ["file_sha256", "read_safetensors"]


@pytest.fixture(scope="module")
def undisturbed(tiny_checkpoint, tmp_path_factory) -> Path:
    """The exact run that others are compared with, drawn by one rank."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run_command("sample_ddp.py", *options(tiny_checkpoint, folder), "--exact")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("ranks", [3, *(pytest.param(ranks, marks=pytest.mark.long) for ranks in (1, 2))])
def test_any_number_of_ranks_draws_the_same_bytes(ranks, undisturbed, tiny_checkpoint, tmp_path):
    done = run_command("sample_ddp.py", *options(tiny_checkpoint, tmp_path), "--exact", ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == contents(undisturbed)
    assert len(contents(tmp_path)) == 23
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["identity"]["noise"] == "philox-v1"
    assert manifest["sessions"][0]["world_size"] == ranks
    assert manifest["sessions"][0]["images_drawn"] == 22
    made_by = manifest["sessions"][0]["fiducial"]
    assert (made_by["version"], made_by["commit"]) == (version.VERSION, version.commit())
    given = ["sample_ddp.py", *options(tiny_checkpoint, tmp_path), "--exact"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    assert shlex.split(made_by["command"]) == [sys.executable, *launcher, *given]


def test_the_npz_holds_the_images_in_order(undisturbed):
    with np.load(undisturbed / "run.npz", allow_pickle=False) as arrays:
        assert arrays["arr_0"].shape == (22, 64, 64, 3)
        assert arrays["arr_1"].shape == (22,)
        for index, pixels in enumerate(arrays["arr_0"]):
            assert (np.asarray(Image.open(undisturbed / "run" / f"{index:06d}.png")) == pixels).all()
        assert len({pixels.tobytes() for pixels in arrays["arr_0"]}) == 22  # no two draws are one


def test_batch_sizes_change_neither_labels_nor_noise(tiny_checkpoint, tmp_path):
    paths = [draw_here(*options(tiny_checkpoint, tmp_path / str(size), per_proc_batch_size=size)) for size in (7, 16)]
    (images_a, labels_a), (images_b, labels_b) = ((file["arr_0"], file["arr_1"]) for file in map(np.load, paths))
    assert (labels_a == labels_b).all()
    # Other noise changes pixels by dozens of levels; another order of summation, by one where a value is at the edge.
    assert np.abs(images_a.astype(int) - images_b).max() <= 1


def test_a_run_that_grows_keeps_its_images_and_equals_one_drawn_at_once(undisturbed, tiny_checkpoint, tmp_path):
    draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=9), "--exact")
    before = {
        name: (tmp_path / "run" / name).stat().st_mtime_ns for name in os.listdir(tmp_path / "run") if name.endswith(".png")
    }
    assert len(before) == 9
    draw_here(*options(tiny_checkpoint, tmp_path), "--exact")
    assert contents(tmp_path) == contents(undisturbed)
    assert all((tmp_path / "run" / name).stat().st_mtime_ns == when for name, when in before.items())
    with pytest.raises(UserError, match="can grow but not shrink"):
        draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=9), "--exact")


def test_a_finished_run_is_left_alone(tiny_checkpoint, tmp_path):
    npz = draw_here(*options(tiny_checkpoint, tmp_path))
    before = npz.stat().st_mtime_ns
    draw_here(*options(tiny_checkpoint, tmp_path))
    assert npz.stat().st_mtime_ns == before
    whole = npz.read_bytes()
    npz.write_bytes(whole[:-100])
    draw_here(*options(tiny_checkpoint, tmp_path))
    assert npz.read_bytes() == whole
    npz.unlink()
    draw_here(*options(tiny_checkpoint, tmp_path))
    assert npz.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cfg_scale": 2.0}, "cfg_scale is 1.5 there and 2.0 here"),
        ({"global_seed": 1}, "global_seed"),
        ({"labels": "balanced"}, "labels is random there and balanced here"),
        ({"per_proc_batch_size": 5}, "per_proc_batch_size is 4 there and 5 here; give these options as they are there"),
        ({"num_sampling_steps": "ddim10"}, "num_sampling_steps"),
        ({"ckpt": "OTHER"}, "checkpoint_sha256"),
        ({"vae": "OTHER"}, "vae_config_sha256"),
    ],
)
def test_another_configuration_is_refused_by_the_field_that_differs(change, named, tiny_checkpoint, tmp_path):
    draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=4))
    before = contents(tmp_path)
    if change.get("ckpt") == "OTHER":
        other = tmp_path / "other.safetensors"
        other.write_bytes(tiny_checkpoint.read_bytes()[:-4] + b"\0\0\0\0")
        change = {"ckpt": other}
    if change.get("vae") == "OTHER":  # the same weights, put to another use
        shutil.copytree(DIGITS / "vae", tmp_path / "vae")
        config = (tmp_path / "vae" / "config.json").read_text()
        (tmp_path / "vae" / "config.json").write_text(config.replace('"silu"', '"relu"'))
        change = {"vae": tmp_path / "vae"}
    with pytest.raises(UserError, match=named):
        draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=4, **change))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("given", "expected"), [(["3"], 3), (["33"], 32), (["3", "--preset", "digits"], 3), (["3", "--per-proc-batch-size", "8"], 8)]
)
def test_few_images_are_not_filled_up_to_a_large_block(given, expected):
    config, _ = sample_ddp.parse(["--num-fid-samples", *given])
    assert config.per_proc_batch_size == expected


def test_run_names_of_different_configurations_differ(tiny_checkpoint, tmp_path):
    common = options(tiny_checkpoint, tmp_path, num_fid_samples=1, per_proc_batch_size=1, num_sampling_steps=1)
    common = [*common[: common.index("--run-name")], "--no-probe"]
    other = tmp_path / "other" / tiny_checkpoint.name  # as trainers name them: 0400000.pt in each experiment's folder
    other.parent.mkdir()
    other.write_bytes(tiny_checkpoint.read_bytes()[:-4] + b"\0\0\0\0")
    changes = [[], ["--eta", "0.5", "--sampler", "ddim"], ["--sampler", "ddim"], ["--labels", "3"], ["--ckpt", str(other)]]
    paths = {draw_here(*common, *change) for change in changes}
    assert len(paths) == len(changes)
    assert all(path.name.startswith("DiT-XS-8-tiny-size-64-vae-digits-cfg-1.5-seed-0-") for path in paths)


@pytest.mark.parametrize(
    "extra", [["--sampler", "ddim", "--eta", "0.7"], ["--sampler", "ddim"], ["--labels", "null"], ["--cfg-scale", "1"]]
)
def test_every_way_to_sample_gives_its_own_images(extra, tiny_checkpoint, tmp_path):
    plain = np.load(draw_here(*options(tiny_checkpoint, tmp_path / "a", num_sampling_steps="ddim10")))["arr_0"]
    other = np.load(draw_here(*options(tiny_checkpoint, tmp_path / "b", num_sampling_steps="ddim10"), *extra))["arr_0"]
    assert (plain != other).mean() > 0.05


def test_an_image_is_what_the_parts_give_one_by_one(tiny_checkpoint, tmp_path):
    """Every option reaches the place where it counts: one image, drawn again without the engine."""
    choices = {
        "global_seed": 7,
        "cfg_scale": 2.5,
        "cfg_channels": 2,
        "rounding": "repa",
        "sampler": "ddim",
        "eta": 0.6,
        "labels": "3,8",
    }
    draw_here(*options(tiny_checkpoint, tmp_path, num_sampling_steps="ddim10", **choices))
    index, steps = 13, 10
    model = checkpoint.read(tiny_checkpoint).load("DiT-XS/8", 10, torch.device("cpu"))
    latents, *noise = (torch.from_numpy(standard_normal(7, index, step, (1, 4, 8, 8))) for step in range(steps))
    y, null = torch.tensor([8]), torch.tensor([10])

    def guided(x, t):
        conditional, unconditional = (model(x, torch.tensor([1000 * t]), label) for label in (y, null))
        out = conditional.clone()
        out[:, :2] = unconditional[:, :2] + 2.5 * (conditional[:, :2] - unconditional[:, :2])
        return out

    with torch.inference_mode():
        latents = sample_ddim(from_noise(guided), latents, Schedule.create("ddim10"), iter(noise), eta=0.6)
        decoded = AutoencoderKL.from_pretrained(DIGITS / "vae").decode(latents / 0.18215).sample
    expected = (127.5 * decoded + 127.5).clamp(0, 255).byte()[0].permute(1, 2, 0).numpy().astype(int)
    drawn = np.asarray(Image.open(tmp_path / "run" / f"{index:06d}.png"))
    assert np.abs(drawn - expected).max() <= 1
    assert (drawn != expected).mean() < 0.01  # half a level of another rounding would show in every second pixel


def test_every_block_has_its_full_shape_and_none_waits_in_a_collective(tiny_checkpoint, tmp_path, monkeypatch):
    shapes = []
    original = latent_diffusion.guided

    def spied(network, weak, labels, guidance):
        predict = original(network, weak, labels, guidance)
        return lambda x, t: shapes.append((len(x), len(labels))) or predict(x, t)

    monkeypatch.setattr(latent_diffusion, "guided", spied)
    for name in (
        "barrier",
        "monitored_barrier",
        "all_reduce",
        "all_gather",
        "all_gather_object",
        "broadcast",
        "broadcast_object_list",
    ):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: pytest.fail("a collective was called"))
    draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=9))
    assert shapes == [(4, 4)] * 3 * 3  # three blocks of four for nine images, three steps each
    assert len(list((tmp_path / "run").glob("*.png"))) == 9


def switches() -> list[object]:
    """All of torch's that a run sets."""
    cuda, compiler = torch.backends.cuda, torch._dynamo.config
    return [
        *(switch.fp32_precision for switch in SWITCHES),
        *(cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled(), torch.backends.cudnn.benchmark),
        *(torch.get_deterministic_debug_mode(), torch.get_num_threads(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")),
        *(compiler.recompile_limit, torch._inductor.config.freezing),
    ]


def test_exact_switches_what_it_promises():
    config, _ = sample_ddp.parse(["--preset", "digits", "--exact"])
    before = switches()
    how = numerics.choices(config, torch.device("cpu"))[0]
    assert how == numerics.REFERENCE
    with numerics.applied(how, config, torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert {switch.fp32_precision for switch in SWITCHES} == {"ieee"}
        assert not torch.backends.cudnn.benchmark
    assert switches() == before


@pytest.mark.parametrize("how", [["--exact", "--attention", "math"], ["--compile", "--precision", "bf16"]], ids=" ".join)
@pytest.mark.parametrize("ends", ["drawn", "forecast", "failed"])
def test_what_a_run_switches_ends_with_it(how, ends, tiny_checkpoint, tmp_path, monkeypatch):
    """Set while it draws; as before for the evaluation that follows in the same process."""
    seen, sample = [], latent_diffusion.LatentDiffusion.sample

    def spied(*given: object) -> torch.Tensor:
        seen.append(switches())
        if ends == "failed":
            raise ValueError("of no kind that is known")
        return sample(*given)

    monkeypatch.setattr(latent_diffusion.LatentDiffusion, "sample", spied)
    monkeypatch.setattr(numerics, "can_compile", lambda _: True)
    monkeypatch.setattr(numerics, "compile_network", lambda *_: None)
    threads, before = torch.get_num_threads(), (torch.set_num_threads(2), switches())[1]
    given = [*options(tiny_checkpoint, tmp_path, num_fid_samples=4), *how]
    given = given[2:] if "--exact" in how else given
    with nullcontext() if ends != "failed" else pytest.raises(ValueError, match="of no kind"):
        if ends == "forecast":
            forecast.forecast(sample_ddp.parse(given)[0], fiducial.init("cpu"), False, 0)
        else:
            draw_here(*given)
    after = switches()
    torch.set_num_threads(threads)
    assert after == before
    assert seen
    assert all(during != before for during in seen)


def test_a_refused_command_leaves_a_run_in_progress_alone(tiny_checkpoint, tmp_path):
    draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=4))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match="different configuration"):
        draw_here(*options(tiny_checkpoint, tmp_path, cfg_scale=3))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_a_killed_process_left_of_an_image_is_gone_in_the_end(tiny_checkpoint, tmp_path):
    draw_here(*options(tiny_checkpoint, tmp_path, num_fid_samples=4))
    (tmp_path / "run" / ".000009.png.tmp").write_bytes(b"half of a")
    (tmp_path / "run" / ".000002.png.tmp").write_bytes(b"half of one that is there")
    left_by_a_dead_process(tmp_path / "run" / "ended.json").write_bytes(b"half")
    draw_here(*options(tiny_checkpoint, tmp_path))
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if not path.name.endswith(".png")) == [
        "manifest.json",
        "progress.json",
        "records",
        "records.bin",
    ]
    assert not list((tmp_path / "run" / "records").iterdir())


def test_an_option_of_a_sampler_takes_nothing_but_its_row(monkeypatch):
    """It is an option of the command, checked, told from others and handed on; runs of other samplers are as they were."""
    before = sample_ddp.parse(["--preset", "digits"])[0].identity()
    option = Option(0.0, 0.0, 2.0, "between 0 and 2", "noise that is added again")
    monkeypatch.setitem(SAMPLERS, "churned", replace(SAMPLERS["ddim"], options={"s_churn": option}))
    given = ["--preset", "digits", "--sampler", "churned"]
    plain, churned = (sample_ddp.parse([*given, *more])[0] for more in ([], ["--s-churn", "1.5"]))
    assert churned.sampler_options() == {"s_churn": 1.5}
    assert (plain.identity()["s_churn"], churned.identity()["s_churn"]) == (0.0, 1.5)
    assert recorded(churned, Identity(churned.identity()), {})["s_churn"] == 1.5
    assert sample_ddp.parse(["--preset", "digits"])[0].identity() == before
    for wrong, said in (
        ([*given, "--s-churn", "3"], "between 0 and 2"),
        (["--s-churn", "1", *given[:2]], "only --sampler churned"),
    ):
        with pytest.raises(UserError, match=said):
            sample_ddp.parse(wrong)
