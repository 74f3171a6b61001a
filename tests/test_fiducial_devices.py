"""The device of a rank, with GPUs that are pretended: which it takes, and that no rank works on another kind than rank 0."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import run_command

import fiducial
from fiducial import UserError, devices

TOO_OLD = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)."


@pytest.fixture
def gpus(monkeypatch) -> Callable[..., list]:
    """Pretend to have so many GPUs, by their numbers; the list is filled with the device that is taken."""

    def pretend(*uuids: str, name: str = "NVIDIA H100", error: str = "") -> list:
        taken = []

        def zeros(*_: object, device: torch.device) -> None:
            if error:
                raise RuntimeError(error)
            taken.append(device)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(uuids))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
        monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
        properties = [SimpleNamespace(name=name, uuid=uuid) for uuid in uuids]
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: properties[place.index])
        monkeypatch.setattr(torch, "zeros", zeros)
        return taken

    return pretend


def take(local_rank: int, store: dist.Store) -> torch.device:
    place = devices.place_of("cuda", local_rank)
    devices.take(place, local_rank, store, devices.look()[1])
    return place


def test_each_local_rank_takes_the_gpu_of_its_number(gpus):
    taken, store = gpus("a", "b"), dist.HashStore()
    assert [take(rank, store) for rank in (0, 1)] == taken == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(UserError, match=r"^local rank 2 needs a GPU of its own, but 2 can be seen here; or choose --device cpu$"):
        take(2, store)


def test_a_task_that_sees_one_gpu_takes_that(gpus):
    """As with SLURM's --gpus-per-task=1, where each task has one of its own, and all call it the first."""
    store = dist.HashStore()
    for rank, uuid in enumerate("abcd"):
        gpus(uuid)
        assert take(rank, store) == torch.device("cuda", 0)


def test_two_ranks_that_see_the_same_gpu_are_refused(gpus):
    store = dist.HashStore()
    gpus("a")
    take(0, store)
    with pytest.raises(UserError, match=r"^local rank 1 needs a GPU of its own, but 1 can be seen here, which another rank"):
        take(1, store)
    gpus("b", name="NVIDIA A100-SXM4-40GB MIG 3g.20gb")  # parts of one have its number
    assert [take(rank, store).index for rank in (0, 1)] == [0, 0]


def test_a_gpu_that_does_not_work_is_named(gpus):
    gpus("a", error="CUDA error: system not yet initialized")
    with pytest.raises(UserError, match=r"cannot use its GPU cuda:0 \(CUDA error: system not yet initialized\); or choose"):
        take(0, dist.HashStore())


def warns() -> bool:
    warnings.warn(TOO_OLD, stacklevel=1)
    return False


def test_a_broken_driver_is_named_as_such(gpus, monkeypatch, capsys, tmp_path):
    """Torch tells of it by a warning, and that no GPU is available."""
    gpus()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "version")
    assert devices.look() == (False, "")
    (tmp_path / "version").write_text("NVRM version")
    assert devices.look() == (False, "it has NVIDIA's driver, but torch finds no GPU")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert devices.look() == (False, "it has NVIDIA's driver, but torch was built without CUDA")
    monkeypatch.setattr(torch.cuda, "is_available", warns)
    assert devices.look() == (False, TOO_OLD)
    assert fiducial.init().device.type == "cpu"
    assert capsys.readouterr().err == (
        f"warning: this runs on the CPU, because the GPU of this machine cannot be used ({TOO_OLD})\n"
    )
    with pytest.raises(UserError, match=r"0 can be seen here .*driver on your system is too old"):
        fiducial.init("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # no GPU is wanted
    assert devices.look() == (False, "")


PRETENDED = """
import os, sys
import fiducial
from fiducial import devices

first = os.environ["RANK"] == "0"
devices.look = lambda: (True, "") if first else (False, "the driver is too old")
devices.take = lambda *_: None
with fiducial.user_errors(), fiducial.init() as group:
    group.wait()
    print("went on")
"""


def test_a_rank_without_the_gpu_that_rank_0_has_ends_all(tmp_path):
    script = tmp_path / "pretended.py"
    script.write_text(PRETENDED)
    done = run_command(script, ranks=2, PYTHONPATH=".")
    assert done.returncode != 0
    assert "went on" not in done.stdout
    assert "rank 1 on " in done.stderr
    assert " works on the CPU (the driver is too old), but rank 0 on " in done.stderr
    assert " works on a GPU; give every rank a GPU that works, or --device cpu" in done.stderr
