"""How samples are computed: what precision, compilation and kernels the options and this hardware come to."""

import atexit
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from fiducial import UserError, make_folder, one_line, warn
from fiducial.cache import COMPILED, hold_kernels
from fiducial.memory import keep_freed_memory
from fiducial.models.networks.parts import TABLES
from fiducial.precision import float32_products
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source.compilation import compiler_threads, kernels_folder

HALF = ("bf16", "fp16")
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = 64  # that one network is compiled for: halves of halves of a batch, with and without guidance
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC = 2  # of torch's debug modes: what cannot be raises
AMPERE = (8, 0)  # the first compute capability with TF32 and bfloat16
Value = TypeVar("Value")


@dataclass(frozen=True)
class Numerics:
    """Numerics that pixels depend on beside the configuration. Rank 0 decides for all; it belongs to the run's identity."""

    precision: str  # of DTYPES
    compile: bool
    attention: str  # sdpa, products or math
    vae_slicing: bool
    cuda_tuning: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that networks multiply in."""
        return DTYPES[self.precision]


RESOLVED = tuple(field.name for field in fields(Numerics))  # in a run's identity
REFERENCE = Numerics("fp32", False, "sdpa", False)


def choices(config: SamplingConfig, device: torch.device) -> tuple[Numerics, ...]:
    """The numerics that these options may come to here, the fastest first: each for where none before it passes verification.
    Without a compiler that works, none of them is compiled.

    Raises:
        UserError: as `ways`.
    """
    found = ways(config, device)
    if any(one.compile for one in found) and not can_compile(device):
        return ways(replace(config, compile=False), device)
    return found


def ways(config: SamplingConfig, device: torch.device) -> tuple[Numerics, ...]:
    """As `choices`, were there a compiler.

    Raises:
        UserError: if this hardware does not have what is asked for.
    """
    on_cpu = device.type == "cpu"
    for option, given in (("--offload", config.offload != "none"), ("--cuda-tuning", config.cuda_tuning)):
        if given and on_cpu:
            raise UserError(f"{option}: needs a GPU, and this runs on a CPU; leave it out")
    if config.exact:
        attention = "sdpa" if config.attention == "auto" else config.attention
        return (Numerics("fp32", False, attention, bool(config.vae_slicing)),)
    return tuple(
        Numerics(precision, is_compiled, _attention(config, precision, on_cpu), _slicing(config, precision, on_cpu), is_tuned)
        for precision in _precisions(config, device)
        for is_compiled in _compiled(config, precision, on_cpu)
        for is_tuned in _tuned(config, precision, is_compiled, on_cpu)
    )


def _precisions(config: SamplingConfig, device: torch.device) -> tuple[str, ...]:
    on_cpu, precision = device.type == "cpu", config.precision
    if precision == "auto" and on_cpu:
        return ("bf16", "fp32") if cpu_has_bf16() else ("fp32",)
    if precision == "auto":
        return ("bf16", "tf32", "fp32") if is_ampere(device) else ("fp32",)
    if precision == "tf32" and (on_cpu or not is_ampere(device)):
        raise UserError("--precision tf32 (--tf32): needs a GPU of compute capability 8.0 or later; use fp32")
    if precision == "bf16" and not on_cpu and not is_ampere(device):
        raise UserError("--precision bf16: this GPU does not have it (compute capability 8.0 or later does); use fp16 or fp32")
    return (precision,)


def _compiled(config: SamplingConfig, precision: str, on_cpu: bool) -> tuple[bool, ...]:
    if config.compile is not None:
        return (config.compile,)
    return (True, False) if on_cpu or precision in HALF else (False,)


def _tuned(config: SamplingConfig, precision: str, is_compiled: bool, on_cpu: bool) -> tuple[bool, ...]:
    if config.cuda_tuning is not None:
        return (config.cuda_tuning,)
    can = not on_cpu and is_compiled and precision in HALF and config.offload not in ("model", "both")
    return (True, False) if can else (False,)


def _attention(config: SamplingConfig, precision: str, on_cpu: bool) -> str:
    if config.attention != "auto":
        return config.attention
    # Torch's kernel multiplies slowly there; with AMX nothing was measured.
    return "products" if on_cpu and precision == "bf16" and "amx_bf16" not in cpu_flags().split() else "sdpa"


def _slicing(config: SamplingConfig, precision: str, on_cpu: bool) -> bool:
    return config.vae_slicing if config.vae_slicing is not None else on_cpu and precision == "bf16"


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 (AVX512-BF16 or AMX), rather than emulating it."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpu_flags().split())


def cpu_flags() -> str:
    """The instructions that Linux says the processor has; empty elsewhere."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith("flags")), "")
    return ""


def is_ampere(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= AMPERE


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works here, found by trying; warns if not. It needs a C++ compiler, for one."""
    try:
        with torch.inference_mode():
            torch.compile(lambda x: x.tanh() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # of many kinds, not all of them torch's
        warn(f"warning: torch.compile does not work here, so networks run without it ({one_line(error)})")
        return False
    return True


@cache
def ready_torch() -> None:
    """Have torch keep compiled kernels in a folder of the user's own (`kernels_folder`), apart for each kind of processor, and
    compile in no more threads than this process has cores.

    To be called before torch's compiler is loaded, which many things do: it then makes its folder, and fails if it cannot.
    Later calls do nothing.
    """
    kind = hashlib.sha256(cpu_flags().encode()).hexdigest()[:16]
    try:
        folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or kernels_folder(f"compiled-{kind}"))
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):  # is it writable?
            pass
        if COMPILED.fullmatch(folder.name):  # or somebody has chosen another
            hold_kernels(folder)
    except (OSError, UserError):  # or there is no home
        folder = Path(tempfile.mkdtemp(prefix="fiducial-compiled-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(compiler_threads()))
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA is no news


@contextmanager
def applied(numerics: Numerics, config: SamplingConfig, device: torch.device) -> Iterator[None]:
    """Torch's global switches set in here, and as before afterwards, as an evaluation may follow in this process.

    With `exact`, a CPU process uses one thread, because how many share a sum changes its last bits: start more ranks instead.
    On a CPU, memory that is freed is kept for what comes next, for good.
    """
    if device.type == "cpu":
        keep_freed_memory()
    cuda, cudnn, is_fused = torch.backends.cuda, torch.backends.cudnn, numerics.attention != "math"
    with ExitStack() as stack:
        stack.enter_context(float32_products(tf32=numerics.precision == "tf32"))
        stack.enter_context(_set(lambda: cudnn.benchmark, lambda value: setattr(cudnn, "benchmark", value), numerics.cuda_tuning))
        stack.enter_context(_set(cuda.flash_sdp_enabled, cuda.enable_flash_sdp, is_fused))
        stack.enter_context(_set(cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp, is_fused))
        stack.enter_context(_set(cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp, is_fused))
        if config.exact:
            stack.enter_context(_set(lambda: os.environ.get(CUBLAS_WORKSPACE), _set_cublas_workspace, ":4096:8"))
            stack.enter_context(_set(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, DETERMINISTIC))
        if config.exact and device.type == "cpu":
            stack.enter_context(_set(torch.get_num_threads, torch.set_num_threads, 1))
        if numerics.compile:
            from torch._dynamo import config as of_dynamo
            from torch._inductor import config as of_inductor

            stack.enter_context(of_dynamo.patch(recompile_limit=SHAPES))
            # Weights become constants, laid out as is fastest; as an option of `compile` it does nothing.
            stack.enter_context(of_inductor.patch(freezing=device.type == "cpu"))
        yield


@contextmanager
def _set(read: Callable[[], Value], write: Callable[[Value], object], value: Value) -> Iterator[None]:
    """A switch at `value` in here, and as before afterwards."""
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def _set_cublas_workspace(value: str | None) -> None:
    if value is None:
        os.environ.pop(CUBLAS_WORKSPACE, None)
    else:
        os.environ[CUBLAS_WORKSPACE] = value


def compile_network(network: nn.Module, how: Numerics, device: torch.device, *beside: nn.Module) -> None:
    """Have a network, and others that draw with it, compiled for each shape that it meets, within `applied`.

    On a CPU that is the whole, as its weights become constants, and so it is for CUDA graphs, which are replayed as one; else it
    is a block, which is compiled once for all, as they are alike.
    """
    torch.compiler.reset()  # what was compiled for an earlier network counts towards the limit
    for table in TABLES:
        torch.compiler.assume_constant_result(table)
    for one in (network, *beside):
        for part in [one] if how.cuda_tuning or device.type == "cpu" else one.blocks:
            part.compile(dynamic=False, mode="reduce-overhead" if how.cuda_tuning else None)
