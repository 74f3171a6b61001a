"""Compilation by several processes and on a GPU: where kernels are, who is first, and that a block stands for all."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import randomised
from torch import nn
from torch._dynamo.utils import counters

import fiducial
from fiducial.models import DiT_models
from fiducial.sampling.source import compilation, numerics
from fiducial.sampling.source.numerics import REFERENCE

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def places(tmp_path, monkeypatch) -> Iterator[tuple[Path, Path]]:
    """The user's cache and this node's own disk, where nothing says where kernels are to be."""
    home, node = tmp_path / "home", tmp_path / "node"
    node.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(node))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(name, "")  # so that what is set is taken back
        monkeypatch.delenv(name)
    return home, node


def kernels(monkeypatch, world_size: int, local: int) -> Path:
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    numerics.ready_torch.__wrapped__()
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


@pytest.mark.parametrize(("world_size", "local", "on_node"), [(1, 1, False), (8, 8, False), (16, 8, True), (2, 1, True)])
def test_kernels_are_on_the_node_where_several_compile(world_size, local, on_node, places, monkeypatch):
    home, node = places
    folder = kernels(monkeypatch, world_size, local)
    assert folder.is_dir()
    assert folder.is_relative_to(node if on_node else home)
    if on_node:
        assert folder.parent.stat().st_mode & 0o077 == 0


def test_a_folder_that_others_can_write_to_is_not_taken(places, monkeypatch):
    own = places[1] / f"fiducial-{os.getuid()}"
    own.mkdir()
    own.chmod(0o777)
    folder = kernels(monkeypatch, 16, 8)
    assert folder.is_dir()
    assert not folder.is_relative_to(own)


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize(("cores", "local", "expected"), [(64, 8, 8), (2, 1, 2), (4, 8, 1), (512, 1, 32)])
def test_the_compiler_takes_a_rank_s_part_of_the_cores(cores, local, expected, monkeypatch):
    monkeypatch.setattr(compilation, "own_cores", lambda: list(range(cores)))
    kernels(monkeypatch, local, local)
    assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == str(expected)
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "3")
    kernels(monkeypatch, local, local)
    assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "3"


def ranks(device: torch.device) -> list[fiducial.Group]:
    """Two of one node."""
    first = replace(fiducial.init("cpu"), world_size=2, device=device)
    return [first, replace(first, rank=1, local_rank=1)]


def test_on_gpus_the_first_of_a_node_compiles_before_the_others():
    first, second = ranks(CUDA)
    done, waits = [], threading.Event()

    def compile_second() -> None:
        waits.set()
        for _ in range(2):  # as after memory ran out
            with compilation.compiling(second):
                done.append("second")

    thread = threading.Thread(target=compile_second)
    with suppress(RuntimeError), compilation.compiling(first):
        thread.start()
        waits.wait()
        thread.join(0.1)
        done.append("first")
        raise RuntimeError("it does not compile")
    thread.join(10)
    with compilation.compiling(first):
        done.append("first again")
    assert done == ["first", "second", "second", "first again"]


def test_on_a_cpu_nobody_waits(monkeypatch):
    asked = []
    monkeypatch.setattr(fiducial.Group, "once_per_node", lambda *given: asked.append(given))
    for rank in ranks(CPU):
        with compilation.compiling(rank):
            assert not asked
    assert not asked


@pytest.mark.parametrize(
    ("device", "tuned", "expected"),
    [(CPU, False, ["DiT"]), (CUDA, True, ["DiT"]), (CUDA, False, ["DiTBlock"] * 6)],
    ids=["cpu", "graphs", "gpu"],
)
def test_on_a_gpu_without_graphs_the_blocks_are_compiled(device, tuned, expected, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda part, **_: compiled.append(type(part).__name__))
    how = replace(REFERENCE, compile=True, cuda_tuning=tuned)
    numerics.compile_network(DiT_models["DiT-XS/8"](input_size=8, num_classes=10), how, device)
    assert compiled == expected


def test_one_block_is_compiled_for_all(monkeypatch):
    """Once for each shape, and once more for the first of them, whose input lies transposed in memory."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda part, **_: compile_module(part, dynamic=False, backend="eager"))
    network = randomised(DiT_models["DiT-XS/8"](input_size=8, num_classes=10)).requires_grad_(False)
    given = [(torch.randn(rows, 4, 8, 8), torch.tensor([500.0]), torch.arange(rows)) for rows in (2, 3)]
    with torch.inference_mode():
        expected = [network(*one) for one in given]
        numerics.compile_network(network, replace(REFERENCE, compile=True), CUDA)
        counters.clear()
        found = [network(*one) for one in given]
    assert all(map(torch.equal, found, expected))
    assert counters["stats"]["unique_graphs"] == 2 * len(given)
