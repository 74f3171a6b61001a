"""A GPU that is pretended: tensors on it have shapes and no values, and what waits for it, or copies to it, is noted.

Everything on the CPU is real. A value that is taken from the GPU is zero.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from diffusers import AutoencoderKL, UniPCMultistepScheduler  # noqa: F401 (before `torch.cuda` is another)
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

GPU = torch.device("cuda", 0)
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", total_memory=80 << 30, major=9, minor=0, uuid="GPU-1", multi_processor_count=132
)


class Stream:
    """A stream that only writes down what is asked of it."""

    def __init__(self, gpu: "PretendedGPU", name: str):
        self.gpu, self.name = gpu, name

    def wait_stream(self, other: "Stream") -> None:
        self.gpu.note(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.gpu.note(f"host waits for {self.name}")


class PretendedGPU(TorchDispatchMode):
    """In here, `GPU` is there.

    `waits` are the places where the host waits for it, `copies` those where something is copied to it, and whether without a
    wait; `events` what happens on streams, in order.
    """

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: Counter[str] = Counter()
        self.copies: Counter[tuple[str, bool]] = Counter()
        self.events: list[str] = []
        self.streams = [Stream(self, "main")]
        self._all = WeakIdKeyDictionary()  # of which "are all ..." was asked, to which the answer is yes

    def __enter__(self) -> "PretendedGPU":
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def note(self, event: str) -> None:
        self.events.append(event)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        inside = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        asked = [torch.device(leaf).type for leaf in leaves if isinstance(leaf, torch.device)]
        if not inside and "cuda" not in asked:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "is_nonzero"):
            self.waits[place()] += 1
            return 0.0 if args[0].dtype.is_floating_point else int(args[0] in self._all)
        if name == "nonzero":
            self.waits[place()] += 1
            return args[0].new_empty((0, args[0].dim()), dtype=torch.int64)
        is_free = bool(kwargs.get("non_blocking") or (name == "copy_" and args[2:] and args[2]))
        if name == "copy_" and not isinstance(args[0], FakeTensor):
            return self._to_host(args[1], args[0], is_free)
        if "cpu" in asked and inside:
            with unset_fake_temporarily():
                there = torch.zeros(inside[0].shape, dtype=kwargs.get("dtype") or inside[0].dtype)
            return self._to_host(inside[0], there, is_free)
        is_copy = name in ("to", "_to_copy", "copy_")  # else a single number goes along with the call
        if any(tensor.dim() or is_copy for tensor in tensors if not isinstance(tensor, FakeTensor)):
            self.copies[place(), is_free] += 1
        args, kwargs = tree_map_only(Tensor, self._without_values, (args, kwargs))
        found = func(*args, **kwargs)
        if name == "all":
            self._all[found] = True
        return found

    def _without_values(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self.fake.from_tensor(tensor)

    def _to_host(self, source: Tensor, there: Tensor, is_free: bool) -> Tensor:
        self.note(f"copy by {self.streams[-1].name}")
        if not is_free:
            self.waits[place()] += 1
        with unset_fake_temporarily():
            return there.fill_(source in self._all)


def place() -> str:
    """The line of ours that is being run, or the last one of a library where none is."""
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename and frame.filename != __file__]
    ours = [frame for frame in frames if frame.filename.startswith(str(ROOT)) and "/tests/" not in frame.filename]
    frame = (ours or frames)[-1]
    return f"{frame.filename.rpartition('/')[2]}: {frame.line}"


def replace_parameters(module: nn.Module, change, recurse: bool = True) -> nn.Module:  # noqa: ARG001
    """`nn.Module._apply`, which cannot exchange the content of tensors without any."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(change(parameter.data), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = change(buffer)
    return module


@pytest.fixture(name="gpu")
def pretended(monkeypatch: pytest.MonkeyPatch) -> PretendedGPU:
    """A machine with one GPU; enter it to have tensors there."""
    there, empty, load = PretendedGPU(), torch.empty, torch.load
    answers = {
        "is_available": True,
        "device_count": 1,
        "set_device": None,
        "get_device_properties": H100,
        "get_device_capability": (9, 0),
        "get_device_name": H100.name,
        "max_memory_allocated": 1 << 30,
        "memory_allocated": 1 << 30,
        "mem_get_info": (70 << 30, 80 << 30),
        "empty_cache": None,
        "synchronize": None,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    monkeypatch.setattr(Tensor, "record_stream", lambda _, stream: there.note(f"memory is kept for {stream.name}"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: Stream(there, "beside"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: there.streams[-1])
    monkeypatch.setattr(torch.cuda, "stream", there.stream)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **given: empty(*shape, **given))  # noqa: ARG005
    monkeypatch.setattr(torch, "load", unset_fake_temporarily()(load))  # it would leave out the values
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda _: None, raising=False)  # of what seems to be there
    monkeypatch.setattr(FakeTensorMode, "avoid_device_init", True)
    monkeypatch.setattr(nn.Module, "_apply", replace_parameters)
    return there
