"""Has inductor write its code of a small DiT for an H100 that is pretended, and prints as JSON what that consists of.

    compiled_for_h100.py bf16|tf32

Nothing is compiled or run: inductor is stopped once it has its code. A program of its own, because it leaves torch changed. By
tf32, torch's older switch for it was set before, as by a program that calls this one.
"""

import json
import os
import re
import sys
from types import SimpleNamespace

os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}

import torch
import torch._inductor.config
import triton
from torch._inductor import compile_fx
from torch._inductor.fx_passes import joint_graph, post_grad
from torch._inductor.graph import GraphLowering
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget

from fiducial.models.networks.dit import DiT
from fiducial.precision import float32_products

GPU = torch.device("cuda", 0)
H100 = SimpleNamespace(
    **{"uuid": "GPU-1", "pci_bus_id": 0, "name": "NVIDIA H100", "major": 9, "minor": 0, "multi_processor_count": 132},
    **{"warp_size": 32, "max_threads_per_multi_processor": 2048, "regs_per_multiprocessor": 65536, "total_memory": 80 << 30},
    **{"shared_memory_per_block_optin": 232448, "L2_cache_size": 50 << 20, "max_threads_per_block": 1024, "gcnArchName": ""},
    **{"shared_memory_per_block": 49152, "shared_memory_per_multiprocessor": 233472, "clock_rate": 1980000},
    **{"memory_clock_rate": 2619000, "memory_bus_width": 5120, "is_integrated": 0},
)


class Written(BaseException):
    """Raised once inductor has its code, which nothing on its way catches."""

    def __init__(self, graph: GraphLowering, code: str):
        self.graph, self.code = graph, code


def stop(graph: GraphLowering) -> None:
    code, _ = graph.codegen()
    raise Written(graph, code if isinstance(code, str) else code.value)


def pretend() -> None:
    """Let torch and triton find an H100."""
    answers = {
        **{"is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": H100, "set_device": None},
        **{"get_device_capability": (9, 0), "_get_device_properties": H100, "_lazy_init": None, "synchronize": None},
        **{"_exchange_device": 0, "_maybe_exchange_device": 0, "is_current_stream_capturing": False},
        **{"get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None},
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch._C._cuda_getCurrentRawStream = lambda _: 0
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda _=0: 0,
        get_active_torch_device=lambda: GPU,
        get_device_interface=lambda: torch.cuda,
    )
    triton.runtime.driver.set_active(driver)


def write(seen: list, module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
    """A backend of torch.compile that has the code written of the same graph on the GPU."""
    seen.append(module)
    pretend()
    mode = FakeTensorMode()
    for node in module.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": GPU}
        node.meta.pop("example_value", None)
    module.recompile()
    with mode:
        there = [torch.empty_strided(given.shape, given.stride(), dtype=given.dtype, device=GPU) for given in inputs]
    settings = {"joint_graph_constant_folding": False, "triton.cudagraphs": True}  # folding needs the GPU
    with torch._guards.tracing(torch._guards.TracingContext(mode)), torch._inductor.config.patch(settings):
        compile_fx.compile_fx(module, there)


def main(precision: str) -> dict:
    GraphLowering.compile_to_module = stop
    joint_graph.lazy_init = post_grad.lazy_init = lambda *_, **__: None  # patterns are found by running them
    shape = {"input_size": 32, "patch_size": 2, "hidden_size": 384, "depth": 2, "num_heads": 6, "num_classes": 10}
    network = DiT(**shape).eval().requires_grad_(False)
    if precision == "bf16":
        network.to_half(torch.bfloat16)
    else:
        torch.set_float32_matmul_precision("high")
    seen = []
    compiled = torch.compile(network, backend=lambda *given: write(seen, *given), dynamic=False, fullgraph=True)
    try:
        with torch.inference_mode(), float32_products(tf32=precision == "tf32"):
            compiled(torch.zeros(2, 4, 32, 32), torch.full((1,), 500.0), torch.zeros(2, dtype=torch.int64))
    except Written as written:
        return told(seen, written)
    raise RuntimeError("inductor was not called")


def told(seen: list, found: Written) -> dict:
    return {
        "graphs": len(seen),
        "devices": sorted(map(str, found.graph.device_node_mapping)),
        "no CUDA graph because": found.graph.disable_cudagraphs_reason,
        "kernels on the host": re.findall(r"^(cpp_\w+) = ", found.code, re.MULTILINE),
        "has kernels": bool(re.findall(r"^triton_\w+ = ", found.code, re.MULTILINE)),
        "waits": found.code.count(".item()"),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])) + "\n")
