"""sample_ddp.py with a fault in it, for the tests of faults: `faulty.py FAULT ...` goes wrong on rank 1 (or on the only rank)."""

import itertools
import os
import re
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import sample_ddp
from fiducial.memory import give_back_freed_memory
from fiducial.models.checkpoints.checkpoint import Checkpoint
from fiducial.models.decoders.autoencoder import Autoencoder
from fiducial.ranks import init
from fiducial.sampling.source import latent_diffusion, networks
from fiducial.sampling.store import writer

WHEN = 10  # evaluations of the network before the fault


def after(calls: int, fault):
    """Models give what `fault(call, x, out)` makes of their result, from this many evaluations on."""
    original, number = latent_diffusion.guided, itertools.count()

    def faulty(*arguments, **options):
        model = original(*arguments, **options)

        def predict(x, t):
            out, call = model(x, t), next(number)
            return fault(call, x, out) if call >= calls else out

        return predict

    latent_diffusion.guided = faulty


def raise_error(*_):
    raise RuntimeError("the thirteenth fan is on fire")


def hang(*_):
    time.sleep(3600)


def nan_once(call, _, out):
    """One image of one batch, in the first of its steps."""
    return out.index_fill(0, torch.tensor([2]), float("nan")) if call == WHEN else out


def out_of_memory(_, x, out):
    """A machine that has room for two images."""
    if len(x) > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
    return out


def no_memory_at_all(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")


def really_out_of_memory():
    """While it decodes, the kernel gives this process little beyond what it has."""
    original = Autoencoder.forward

    def forward(*arguments):
        give_back_freed_memory()
        taken = 1024 * int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1])
        resource.setrlimit(resource.RLIMIT_DATA, (taken + int(os.environ["ROOM"]), resource.RLIM_INFINITY))
        try:
            return original(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    Autoencoder.forward = forward


def other_pixels():
    """Images differ in a bit from what the same command drew before."""
    original = networks.to_pixels
    networks.to_pixels = lambda *arguments: original(*arguments) ^ 1


def other_weights():
    """What has gone into memory is not what is in the file."""
    original = Checkpoint.load

    def load(*arguments):
        network = original(*arguments)
        network.final_layer.linear.weight.neg_()
        return network

    Checkpoint.load = load


def hang_in_evaluation():
    from fiducial.evaluation.evaluate import Evaluation

    Evaluation.evaluate = hang


def hang_on_disk():
    writer.write_png = hang


def late():
    """Longer than others would wait for a beat."""
    original = init.meet
    init.meet = lambda *arguments: (time.sleep(25), original(*arguments))[1]


FAULTS = {
    "none": lambda: None,
    "raise": lambda: after(WHEN, raise_error),
    "hang": lambda: after(WHEN, hang),
    "nan": lambda: after(WHEN, nan_once),
    "out-of-memory": lambda: after(WHEN, out_of_memory),
    "no-memory": lambda: after(0, no_memory_at_all),
    "other-pixels": other_pixels,
    "other-weights": other_weights,
    "late": late,
    "hang-on-disk": hang_on_disk,
    "hang-in-evaluation": hang_in_evaluation,
    "really-out-of-memory": really_out_of_memory,
}

if __name__ == "__main__":
    fault = sys.argv.pop(1)
    if os.environ.get("RANK", "1") == "1":
        FAULTS[fault]()
    sample_ddp.main()
