"""Problems that a run will meet on this machine, found by trying: `python -m sampling doctor`, alone or under torchrun on all
nodes.

A check is a function that yields findings. Those of a machine are made by the first rank of each node, those of the folder that
all share by every rank.
"""

import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from fiducial import (
    CHECKPOINTS,
    REFERENCES,
    ZIPPED,
    Group,
    Stopped,
    UserError,
    cache,
    default_cache,
    in_the_making,
    one_line,
    remove_leftovers,
    say,
    write_whole,
)
from fiducial.models.checkpoints import hub
from fiducial.models.decoders import autoencoder
from fiducial.precision import TF32_OVERRIDE, tf32_is_forced
from fiducial.sampling import memory
from fiducial.sampling.commands.verified import verified
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source import numerics
from fiducial.sampling.store import disk
from fiducial.sampling.store.lock import Lock, await_token
from fiducial.version import DISTRIBUTION
from fiducial.wings import IS_CHECKOUT, ROOT

REQUIREMENTS = ROOT / "requirements.txt"  # in a checkout
PYTHON = (3, 11)
OK, NOTE, PROBLEM = "ok", "note", "problem"
COUNT, IMAGE_SIZE = 50_000, 256  # for which there is to be room
SEEN_SECONDS = 60.0  # that network file systems may take to show another host's file


More = Callable[[Group], Iterator[tuple[str, str]]]  # texts, each with the problem that it is, if it is one


@dataclass(frozen=True)
class Finding:
    """`remedy` says what to do, where something is to be done."""

    level: str  # ok, note, or problem
    about: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:8} {self.about:10} {self.text}" + (f"; {self.remedy}" if self.remedy else "")


def doctor(group: Group, sample_dir: Path, cache_dir: Path | None, with_numerics: bool, more: More | None) -> int:
    """Print what is found, on rank 0. Returns, on every rank, the exit code: 1 if there is a problem.

    Args:
        more: further findings of every rank.
    """
    numerics.ready_torch()
    own = list(machine(group.device, cache_dir)) if group.local_rank == 0 else []
    if with_numerics and (group.local_rank == 0 or group.device.type == "cuda"):
        found = of_numerics(group.device)
        own += found if group.local_rank == 0 else of_another_gpu(group.local_rank, found)
    for text, problem in more(group) if more else ():
        own.append(Finding(PROBLEM if problem else OK, "evaluation", problem or text))
    own += shared_folder(group, sample_dir)
    told = [(socket.gethostname(), asdict(finding)) for finding in own]
    found = group.gather(told)
    return group.once(lambda: report([pair for of_rank in found for pair in of_rank]))


def report(found: list[tuple[str, dict]]) -> int:
    """Print what the ranks have found, each finding of a host once; return the exit code."""
    several, seen = len({host for host, _ in found}) > 1, set()
    for host, fields in found:
        line = f"{Finding(**fields)}" + (f" [{host}]" if several else "")
        if line not in seen:
            say(line)
        seen.add(line)
    problems = sum(line.startswith(PROBLEM) for line in seen)
    say(f"{problems} problem(s)" if problems else "no problem")
    return min(1, problems)


def machine(device: torch.device, cache_dir: Path | None) -> Iterator[Finding]:
    """Everything that belongs to one machine."""
    yield from packages(required())
    yield from gpus() if device.type == "cuda" else processor(device)
    yield from compiler(device)
    yield from free_memory(device)
    yield from weights(cache_dir)
    yield from cached(cache_dir)
    yield from surroundings()


def required() -> str:
    """Requirements, a package a line: requirements.txt, or what the installed distribution declares."""
    if IS_CHECKOUT:
        return REQUIREMENTS.read_text()
    return "\n".join(line for line in requires(DISTRIBUTION) or () if "extra ==" not in line)


def packages(requirements: str) -> Iterator[Finding]:
    """Versions against the ranges in the text of requirements.txt."""
    own = sys.version_info[:2]
    needs = ".".join(map(str, PYTHON))
    if own < PYTHON:
        yield Finding(PROBLEM, "python", platform.python_version(), f"Fiducial needs {needs} or later")
    found, is_whole = [], True
    for line in requirements.splitlines():
        if not (text := line.partition("#")[0].strip()):
            continue
        wanted = Requirement(text)
        try:
            have = version(wanted.name)
        except PackageNotFoundError:
            have = None
        if have is None or not wanted.specifier.contains(have, prereleases=True):
            is_whole = False
            yield Finding(PROBLEM, "packages", f"{wanted.name} {have or 'is not installed'}", f"pip install '{wanted}'")
        else:
            found.append(f"{wanted.name} {have}")
    yield Finding(OK if is_whole else NOTE, "packages", f"python {platform.python_version()}, {', '.join(found)}")


def gpus() -> Iterator[Finding]:
    driver = ""
    with suppress(OSError):
        driver = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
        driver = f", driver {match[0]}" if (match := re.search(r"\d+\.\d+(\.\d+)?", driver)) else ""
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        precision = automatic_precision(torch.device("cuda", index))
        yield Finding(
            OK,
            "gpu",
            f"{index}: {properties.name}, {disk.readable(properties.total_memory)}, capability {properties.major}."
            f"{properties.minor}{driver}, CUDA {torch.version.cuda}; --precision auto is {precision}",
        )
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    yield Finding(OK, "nccl", f"{nccl}, which is not needed: ranks add up over gloo")


def processor(device: torch.device) -> Iterator[Finding]:
    bf16 = "has" if numerics.cpu_has_bf16() else "does not have"
    yield Finding(
        OK,
        "processor",
        f"{torch.get_num_threads()} threads of {os.cpu_count()} for this process; it {bf16} bfloat16 products; --precision auto "
        f"is {automatic_precision(device)}",
    )
    if torch.version.cuda and Path("/proc/driver/nvidia").exists() and not torch.cuda.is_available():
        yield Finding(
            PROBLEM, "gpu", "there is a driver, but torch finds no GPU", "see what nvidia-smi says, and CUDA_VISIBLE_DEVICES"
        )


def automatic_precision(device: torch.device) -> str:
    return numerics.choices(SamplingConfig(ckpt=Path(), compile=False), device)[0].precision


def compiler(device: torch.device) -> Iterator[Finding]:
    """Compile something small, in an empty cache, so that nothing is found that was compiled before."""
    before = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        works = numerics.can_compile(device)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
    if works:
        yield Finding(OK, "compiler", "torch.compile works")
    else:
        name = os.environ.get("CXX", "g++")
        yield Finding(
            PROBLEM,
            "compiler",
            f"torch.compile does not work with {name}",
            "install g++, or name one by CXX, or use --no-compile",
        )


def of_numerics(device: torch.device) -> Iterator[Finding]:
    """Every precision that there is here against fp32, on two networks; takes minutes."""
    if tf32_is_forced(device):
        yield Finding(PROBLEM, "numerics", f"{TF32_OVERRIDE}=1 leaves no float32 to compare with", "unset it")
        return
    try:
        yield from against_fp32(device)
    except (Stopped, UserError):
        raise
    except Exception as error:  # of whatever kind: a device in use, or a broken one
        yield Finding(PROBLEM, "numerics", f"they cannot be looked at: {one_line(error)}", "see nvidia-smi, or --no-numerics")


def against_fp32(device: torch.device) -> Iterator[Finding]:
    for of_network in map(list, verified(device)):
        is_any_right = any(passes for _, passes in of_network)
        for line, passes in of_network:
            if passes:
                yield Finding(OK, "numerics", line)
            elif is_any_right:
                yield Finding(NOTE, "numerics", line, "--precision auto takes another")
            else:
                yield Finding(PROBLEM, "numerics", line, "see to torch, the driver and the device, as only fp32 is left")


def of_another_gpu(local_rank: int, found: Iterator[Finding]) -> Iterator[Finding]:
    """Findings on a GPU beside the first of its machine, whose table stands for all: those that are not as they should be."""
    return (replace(one, text=f"GPU {local_rank}: {one.text}") for one in found if one.level != OK)


def free_memory(device: torch.device) -> Iterator[Finding]:
    yield Finding(OK, "memory", f"{disk.readable(max(0, memory.room(device, 0)))} for each process of this machine")


def shared_folder(group: Group, sample_dir: Path) -> list[Finding]:
    """Whether runs can be written there and all ranks see what rank 0 writes. To be called by every rank.

    What is tried out stands in a folder of its own, which is removed.
    """
    there = disk.nearest(sample_dir)
    with ExitStack() as stack:
        probe, token, found = "", "", []
        if group.is_main:
            try:
                remove_leftovers(there)
                folder = in_the_making(there / "fiducial-doctor")
                folder.mkdir()
                probe = str(folder)
                stack.callback(shutil.rmtree, probe, ignore_errors=True)
                held = stack.enter_context(Lock(folder))
                token = held.token
                found += [*written(folder, sample_dir), *room(sample_dir)]
            except OSError as error:
                reason = error.strerror or str(error)
                found.append(Finding(PROBLEM, "folder", f"{there} cannot be written ({reason})", "choose another --sample-dir"))
        probe, token = group.once(lambda: [probe, token])
        if probe and not group.is_main:
            found += seen(Path(probe), token, group.rank)
        group.wait()  # before it is removed
    return found


def written(probe: Path, sample_dir: Path) -> Iterator[Finding]:
    """On rank 0, which holds the lock of the folder `probe`."""
    file = probe / "file"
    file.write_text("old")
    write_whole(file, lambda beside: beside.write_text("new"))
    if file.read_text() != "new":
        yield Finding(PROBLEM, "folder", f"{probe.parent} shows an old file after it was replaced", "choose another --sample-dir")
    try:
        with Lock(probe):
            yield Finding(PROBLEM, "folder", f"{probe.parent}: two runs could hold one folder", "choose another --sample-dir")
    except UserError:
        yield Finding(OK, "folder", f"{sample_dir} can be written, files are replaced in one step, and runs are locked")


def seen(probe: Path, token: str, rank: int) -> list[Finding]:
    """On the other ranks."""
    try:
        await_token(probe, token, rank, SEEN_SECONDS)
    except UserError as error:
        return [Finding(PROBLEM, "folder", str(error).replace(str(probe), str(probe.parent)))]
    return [Finding(OK, "folder", f"{probe.parent} is seen by ranks other than 0, too")]


def room(folder: Path) -> Iterator[Finding]:
    """Free disk and files, against 50,000 images of 256 x 256."""
    system, free, new = os.statvfs(disk.nearest(folder)), disk.room(folder), folder / ".none"
    with_png, alone = (disk.needed(new, COUNT, COUNT, IMAGE_SIZE, pngs) for pngs in (COUNT, 0))
    run = f"{COUNT:,} images of {IMAGE_SIZE} x {IMAGE_SIZE}"
    text = f"{disk.readable(free)} are free; {run} take {disk.readable(with_png)}, with --no-png {disk.readable(alone)}"
    if free < alone:
        yield Finding(PROBLEM, "disk", text, "make room, or choose another --sample-dir")
    else:
        yield Finding(OK, "disk", text) if free >= with_png else Finding(NOTE, "disk", text, "use --no-png for so many")
    if system.f_files and system.f_favail < COUNT:
        yield Finding(NOTE, "files", f"room for {system.f_favail:,} more files", f"use --no-png for {COUNT:,} images")


def weights(cache_dir: Path | None) -> Iterator[Finding]:
    """Lines on the published files that are on this machine. None is needed for --preset digits."""
    from huggingface_hub import try_to_load_from_cache

    def remedy(vae: str = "") -> str:
        options = vae + (f" --cache-dir {cache_dir}" if cache_dir else "")
        return f"python -m models fetch dit-xl-2-256{options} brings it where there is internet"

    own = cache_dir or default_cache()
    places = {
        "checkpoint": (own / CHECKPOINTS, "DiT-*.pt"),
        "inception": ((cache_dir or Path(torch.hub.get_dir())) / CHECKPOINTS, "weights-inception-*.pth"),
        "reference": (own / REFERENCES, "*.npz"),
    }
    for name, (folder, pattern) in places.items():
        if files := sorted(folder.glob(pattern)):
            whole = [path for path in files if path.suffix not in ZIPPED or zipfile.is_zipfile(path)]
            if whole:
                yield Finding(OK, name, ", ".join(map(str, whole)))
            for path in (path for path in files if path not in whole):
                yield Finding(PROBLEM, name, f"{path} is damaged", "delete it, and fetch it again")
        else:
            yield Finding(NOTE, name, f"no {pattern} in {folder}", remedy())
    kept = hub.cache_folder(cache_dir)
    for name, repository in autoencoder.NAMED_VAES.items():
        file = try_to_load_from_cache(repository, autoencoder.WEIGHTS_FILE, cache_dir=kept)
        if isinstance(file, str):
            yield Finding(OK, "vae", f"--vae {name}: {Path(file).parent}")
        else:
            yield Finding(NOTE, "vae", f"--vae {name}: {repository} is not in {kept}", remedy(f" --vae {name}"))


def cached(cache_dir: Path | None) -> Iterator[Finding]:
    """How much the cache holds of what; kernels are in the user's own, wherever `--cache-dir` is."""
    for folder in dict.fromkeys((cache_dir or default_cache(), default_cache())):
        found = {kind: size for kind, (count, size) in cache.sizes(folder).items() if count}
        where = f" --cache-dir {folder}" if folder == cache_dir else ""
        said = ", ".join(f"{disk.readable(size)} of {kind}" for kind, size in found.items())
        remedy = f"python -m evaluation prune{where} --older-than 30d removes what was not used for so long"
        yield Finding(OK, "cache", f"{folder} holds {said or 'nothing'}", remedy if found else "")


def surroundings() -> Iterator[Finding]:
    """Lines on network, hub and scheduler, by the environment."""
    name, interface = socket.gethostname(), os.environ.get("GLOO_SOCKET_IFNAME")
    try:
        address = socket.gethostbyname(name)
        by = f"; GLOO_SOCKET_IFNAME is {interface}" if interface else ""
        yield Finding(OK, "network", f"{name} is {address}{by}")
    except OSError as error:
        level = NOTE if interface else PROBLEM
        text = f"this host's own name, {name}, has no address ({error.strerror or error}), and several ranks add up by it"
        remedy = "" if interface else "put it into /etc/hosts, or name the interface by GLOO_SOCKET_IFNAME"
        yield Finding(level, "network", text, remedy)
    if interface and interface not in (names := [name for _, name in socket.if_nameindex()]):
        yield Finding(PROBLEM, "network", f"GLOO_SOCKET_IFNAME is {interface}", f"it must be one of {', '.join(names)}")
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off"):
        yield Finding(NOTE, "hub", "HF_HUB_OFFLINE is set, so hub ids are taken from the cache alone")
    slurm = {name: os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_NNODES", "SLURM_NTASKS") if name in os.environ}
    if slurm:
        yield Finding(OK, "slurm", ", ".join(f"{name} {value}" for name, value in slurm.items()))
        if int(slurm.get("SLURM_NTASKS", "1")) > 1 and "RANK" not in os.environ:
            yield Finding(NOTE, "slurm", "several tasks, but no launcher's RANK", "start torchrun by srun, as scripts/slurm does")
