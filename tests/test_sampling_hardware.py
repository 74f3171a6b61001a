"""Ranks and sessions on other hardware or versions: refused with --exact, warned of without, unless that is allowed."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import draw_files, options

import sample_ddp
from fiducial import UserError, init
from fiducial.evaluation.features.load import load_extractor
from fiducial.sampling.identity import Identity
from fiducial.sampling.run import hardware
from fiducial.sampling.run.hardware import Ranks
from fiducial.sampling.store.manifest import MANIFEST_FORMAT, Manifest, Session, read

RUN = Path("samples/run")
ON_H100 = {
    "host": "a",
    "device": "NVIDIA H100",
    "packages": {"torch": "2.15.0", "diffusers": "0.42.1", "numpy": "2.4.6", "pillow": "12.0"},
    "hardware": {"cpu": "Xeon", "capability": "9.0", "cuda": "13.2", "cudnn": 92600},
}
ON_CPU = ON_H100 | {"device": "EPYC 7763", "hardware": {"instructions": "avx2 fma"}}


def other(told: dict = ON_H100, **changes) -> dict:
    """The same on host b, but for a device, a package, or a fact of the hardware."""
    told = told | {"host": "b", "device": changes.pop("device", told["device"])}
    for part in ("packages", "hardware"):
        told[part] = told[part] | {name: value for name, value in changes.items() if name in told[part]}
    return told


def compared(*told: dict, sessions: tuple[Session, ...] = (), images: int = 8, exact: bool = True, allow: bool = False) -> str:
    identity = Identity({"exact": exact, "precision": "fp32"})
    ranks = Ranks(told, allow)
    ranks.compare(identity, Manifest(MANIFEST_FORMAT, identity, 99, list(sessions)), RUN, images)
    return ranks.mixed


def session(told: dict, **changes) -> Session:
    return replace(Session(1, 0, device=told["device"], packages=told["packages"], hardware=told["hardware"]), **changes)


@pytest.mark.parametrize(
    ("first", "changes", "said"),
    [
        (ON_H100, {"device": "NVIDIA A100"}, "NVIDIA A100, and rank 0 on a NVIDIA H100"),
        (ON_H100, {"cudnn": 91002}, "cuDNN 91002, and rank 0 on a cuDNN 92600"),
        (ON_H100, {"torch": "2.14.0", "numpy": "2.0"}, "torch 2.14.0, numpy 2.0, and rank 0 on a torch 2.15.0, numpy 2.4.6"),
        (ON_CPU, {"device": "EPYC 9454"}, "EPYC 9454, and rank 0 on a EPYC 7763"),
        (ON_CPU, {"instructions": "avx2 avx512f fma"}, "the instructions avx512f, and rank 0 on a not the instructions avx512f"),
        (ON_CPU, {"device": "Xeon", "instructions": "avx2"}, "Xeon, and rank 0 on a EPYC 7763"),
    ],
)
def test_a_rank_that_differs_from_rank_0_is_named_with_both(first, changes, said, capsys):
    told = (first, first, other(first, **changes))
    with pytest.raises(UserError) as refused:
        compared(*told)
    assert str(refused.value) == (
        f"--exact: rank 2 on b has {said}, which need not give the same bytes; make them alike, or give --allow-mixed"
    )
    assert capsys.readouterr().err == ""
    if changes.get("device") == "NVIDIA A100":
        with pytest.raises(UserError, match="rank 2 on b has NVIDIA A100, and rank 0 on a NVIDIA H100, which draws other pixels"):
            compared(*told, exact=False)
    else:
        assert compared(*told, exact=False) == f"rank 2 on b has {said}"
        assert capsys.readouterr().err.startswith(f"warning: rank 2 on b has {said}, so pixels may differ")
    assert compared(*told, allow=True) == compared(*told, allow=True, exact=False) == f"rank 2 on b has {said}"
    assert capsys.readouterr().err == ""


def test_what_makes_no_pixels_may_differ():
    assert compared(ON_H100, other(cpu="EPYC", pillow="11.0")) == ""
    assert compared(ON_CPU, ON_CPU) == ""


def test_many_ranks_that_differ_are_one_line(capsys):
    told = [ON_H100, *[other(cudnn=91002)] * 3]
    assert compared(*told, exact=False).count("; ") == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match=r"^--exact: rank 1 on b .* \(and 2 more such differences\), which"):
        compared(*told)


def test_a_session_on_other_hardware_is_named_with_its_number():
    alike, unlike = session(ON_H100), session(other(torch="2.14.0"), images_before=4)
    assert compared(ON_H100, sessions=(alike,)) == ""
    with pytest.raises(UserError, match=r"session 2 of samples/run had torch 2\.14\.0, and this one has torch 2\.15\.0, which"):
        compared(ON_H100, sessions=(alike, unlike))
    assert compared(ON_H100, sessions=(replace(unlike, images_before=8),)) == ""  # it drew nothing


def test_a_run_may_go_on_on_another_gpu_but_for_exact(capsys):
    """As it may have to, where GPUs are rented; it is said and recorded."""
    before = session(other(device="NVIDIA A100"))
    assert compared(ON_H100, sessions=(before,), exact=False).startswith("session 1 of samples/run had NVIDIA A100")
    assert "so pixels may differ" in capsys.readouterr().err


def test_older_sessions_are_compared_by_what_they_have_recorded():
    assert compared(ON_H100, sessions=(session(ON_H100, hardware=None, packages=None),)) == ""
    assert compared(ON_H100, sessions=(Session(1, 0),)) == ""
    with pytest.raises(UserError, match="session 1 of samples/run had NVIDIA A100, and this one has NVIDIA H100"):
        compared(ON_H100, sessions=(session(ON_H100, hardware=None, device="NVIDIA A100"),))


@pytest.mark.parametrize(("precision", "exact"), [("fp32", True), ("fp32", False), ("tf32", False)])
def test_the_environment_does_not_make_tf32_of_fp32(precision, exact):
    overridden = other(ON_H100) | {"hardware": ON_H100["hardware"] | {"tf32_override": "1"}}
    identity = Identity({"exact": exact, "precision": precision})
    if precision == "tf32":
        return Ranks([ON_H100, overridden], False).compare(identity, None, RUN, 0)
    option = "--exact" if exact else "--precision fp32"
    with pytest.raises(UserError, match=f"NVIDIA_TF32_OVERRIDE=1 in the environment of rank 1 on b .* {option} excludes; unset"):
        Ranks([ON_H100, overridden], True).compare(identity, None, RUN, 0)


def test_an_evaluation_does_not_run_in_tf32_by_the_environment(alone, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert load_extractor("digits", None, alone)
    with pytest.raises(UserError, match="NVIDIA_TF32_OVERRIDE=1 in the environment makes TF32 of every float32 product"):
        load_extractor("digits", None, replace(alone, device=torch.device("cuda", 0)))


def test_a_gpu_and_its_libraries_are_recorded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92600)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    told = json.loads(json.dumps(hardware.own(torch.device("cuda", 0))))
    assert told["device"] == "NVIDIA H100"
    assert told["hardware"] == {
        "cpu": hardware.cpu_name(),
        "capability": "9.0",
        "cuda": torch.version.cuda,
        "cudnn": 92600,
        "tf32_override": "0",
    }
    assert hardware.own(torch.device("cpu"))["hardware"] == {"instructions": hardware.instructions()}


def grown(checkpoint: Path, folder: Path, count: int, *more: str) -> Path:
    config, _ = sample_ddp.parse([*options(checkpoint, folder, num_fid_samples=count), "--no-png", *more])
    allowed = {"allow_mixed": "--allow-mixed" in more}
    return draw_files(config, init("cpu"), False, options=allowed)


def test_an_exact_run_is_not_continued_on_another_processor(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    grown(tiny_checkpoint, tmp_path, 4, "--exact")
    own = hardware.cpu_name()
    assert f"ready on 1 rank(s), cpu {own}, fp32: " in capsys.readouterr().out
    assert read(tmp_path / "run").sessions[0].hardware == {"instructions": hardware.instructions()}
    monkeypatch.setattr(hardware, "cpu_name", lambda: "another")
    grown(tiny_checkpoint, tmp_path, 4, "--exact")  # nothing is drawn
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    said = f"--exact: session 1 of {tmp_path}/run had {own}, and this one has another, which"
    with pytest.raises(UserError, match=re.escape(said)):
        grown(tiny_checkpoint, tmp_path, 8, "--exact")
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before
    grown(tiny_checkpoint, tmp_path, 8, "--exact", "--allow-mixed")
    found = read(tmp_path / "run")
    assert found.sessions[-1].mixed == f"session 1 of {tmp_path}/run had {own}, and this one has another"
    assert "allow_mixed" not in found.options
