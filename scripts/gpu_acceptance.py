r"""Tests and measures on a GPU all that can be seen nowhere else, and writes it as Markdown and JSON.

    bash scripts/gpu_acceptance.sh --markdown gpu.md --json gpu.json
    bash scripts/gpu_acceptance.sh --device cpu --small --markdown gpu.md

Each section is a process of its own with a limit of its own: one that fails, or takes too long, takes no other along, and what
it had measured by then is kept. All together have nine minutes. Networks are random, and nothing is downloaded. --small takes
sizes that say nothing of speed, to see that everything works.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script, it is started from anywhere

if __name__ == "__main__":
    import fiducial.interrupts  # noqa: F401 (before what takes time)

import argparse
import json
import os
import platform
import queue
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fiducial import Parser, UserError, one_line, require_ending, say, user_errors
from fiducial.wings import ASSETS
from scripts import benchmark_sampling as drawing

if TYPE_CHECKING:
    import torch

    from fiducial.sampling.source.latent_diffusion import LatentDiffusion

ROOT = Path(__file__).resolve().parent.parent
COUNT, STEPS = 50_000, 250  # of a published row
PATIENCE = 5  # times the limits, where speed is no matter
OUTCOME = re.compile(r"::(.+?) (PASSED|FAILED|ERROR|SKIPPED)")  # a test's, as pytest says it
FEW = {"per_proc_batch_size": 2, "num_sampling_steps": "10", "compile": False}  # for --small, of what is verified
Row = dict[str, object]


@dataclass(frozen=True)
class Work:
    """Sizes and the device of the measurements."""

    device: str
    small: bool

    @property
    def networks(self) -> list[tuple[str, int, int]]:
        """Model, image size and images drawn at once, the most wanted first."""
        if self.small:
            return [("DiT-S/8", 64, 2), ("SiT-S/8", 64, 2)]
        sizes = [(256, 32), (512, 16), (256, 64), (256, 16), (512, 32)]
        first, others = sizes[:2], sizes[2:]
        pairs = [(f"{family}-XL/2", *size) for size in first for family in ("DiT", "SiT")]
        return [*pairs, *(("DiT-XL/2", *size) for size in others)]

    @property
    def place(self) -> "torch.device":
        import torch

        return torch.device(self.device, 0) if self.device == "cuda" else torch.device(self.device)

    def drawing(self, model: str, size: int, images: int) -> drawing.Drawing:
        return drawing.Drawing(Path(), model, images, STEPS, self.device, size)


def machine(work: Work) -> Iterator[Row]:
    """The machine and its versions."""
    import torch

    from fiducial.sampling.run import hardware

    own = hardware.own(work.place)
    found = {"device": own["device"], "host's processor": hardware.cpu_name(), "python": platform.python_version()}
    found |= own["packages"] | {name: value for name, value in own["hardware"].items() if name != "cpu"}
    if work.device == "cuda":
        free, total = torch.cuda.mem_get_info(work.place)
        found |= {"GB": total / 1e9, "GB free": free / 1e9}
    yield from ({"what": name, "value": value} for name, value in found.items())


def tests(_: Work) -> Iterator[Row]:
    """The tests with the marker `gpu`."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-vv", "--tb=line", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if found := OUTCOME.search(line):
            yield {"test": found[1], "outcome": found[2].lower()}
        elif line.startswith(("E  ", "/", "FAILED")):
            yield {"test": "", "outcome": line.strip()[:300]}
    process.wait()


def verification(work: Work) -> Iterator[Row]:
    """The findings of `doctor`; those on numerics as they come, for they take long."""
    from fiducial.sampling.commands.verified import verified
    from fiducial.sampling.source.numerics import ready_torch

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fiducial", "doctor", "--no-numerics", "--device", work.device]
        command += ["--sample-dir", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    for line in (done.stdout + done.stderr).splitlines():
        yield {"finding": line}
    ready_torch()
    options = FEW if work.small else {}
    for of_network in verified(work.place, **options):
        yield from ({"finding": f"{'passes' if passes else 'FAILS'}: {line}"} for line, passes in of_network)


@contextmanager
def source(work: Work, model: str, size: int, images: int, graphs: bool, vae: Path | None) -> Iterator["LatentDiffusion"]:
    """A random network that is loaded as a run with bfloat16 has it, and the codec in the folder `vae`, if one is given."""
    import torch

    import sample_ddp
    from fiducial.models.decoders.autoencoder import Autoencoder
    from fiducial.models.latent import LatentShape
    from fiducial.models.networks.table import spec_of
    from fiducial.sampling.source.latent_diffusion import LatentDiffusion
    from fiducial.sampling.source.networks import Networks
    from fiducial.sampling.source.numerics import Numerics

    given = ["--model", model, "--image-size", str(size), "--num-classes", str(drawing.CLASSES), "--ckpt", "none", "--no-probe"]
    given += ["--per-proc-batch-size", str(images), "--sampler", spec_of(model).sampler, "--num-sampling-steps", "10"]
    config, _ = sample_ddp.parse(given)
    side = size // drawing.FACTOR
    how = Numerics("bf16", work.device == "cuda", "sdpa", False, graphs)
    networks = Networks(config, work.place, how, LatentShape(drawing.LATENT, side), lambda: Autoencoder(vae))
    with work.place:
        network = spec_of(model).build[model](input_size=side, num_classes=drawing.CLASSES)
        for parameter in network.parameters():
            parameter.data.normal_(std=0.02)
    networks.network = network.to(work.place).eval().requires_grad_(False).to_half(how.dtype)
    if vae:
        networks.decoder = Autoencoder(vae).load(work.place, how.dtype)
    drawer = LatentDiffusion(networks)
    with drawer.switched(), torch.inference_mode():
        drawer.load()
        yield drawer


def denoiser(work: Work) -> Iterator[Row]:
    """One guided evaluation of the network against the product of two large matrices in bfloat16, in this process."""
    import torch

    most = drawing.ceiling(torch.bfloat16, work.place)
    yield {"model": "matrix product", "TFLOP/s": most / 1e12}
    for graphs in (False, True) if work.device == "cuda" else (False,):  # for which the whole network is compiled, in a minute
        for model, size, images in work.networks:
            row = {"model": model, "size": size, "batch": images, "CUDA graphs": graphs}
            yield row | attempt(lambda case=(model, size, images, graphs): evaluated(work, most, *case))


def evaluated(work: Work, most: float, model: str, size: int, images: int, graphs: bool) -> Row:
    import torch

    side, started = size // drawing.FACTOR, time.perf_counter()
    x = torch.randn(images, drawing.LATENT, side, side, device=work.place)
    with source(work, model, size, images, graphs, None) as drawer:
        loading = time.perf_counter() - started
        guided = drawer.guided(range(images))
        seconds = drawing.timed(lambda: guided(x, 0.5), work.place)
    speed = drawing.operations(work.drawing(model, size, images)) / seconds
    return {
        "ms": 1000 * seconds,
        "TFLOP/s": speed / 1e12,
        "of ceiling": speed / most,
        "hours to 50,000": COUNT / images * STEPS * seconds / 3600,
        "compiling s": loading,
        "GB": held(work),
    }


def held(work: Work) -> float:
    from fiducial.sampling import memory

    return memory.peak(work.place) / 1e9


def decoding(work: Work) -> Iterator[Row]:
    """Images a second of a decoder of Stable Diffusion's shape, and of blocks, from noise to pixels in the host's memory."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        vae = ASSETS / "digits" / "vae" if work.small else Path(folder)
        if not work.small:
            drawing.make_vae().save_pretrained(vae)
        for model, size, images in work.networks[:: 1 if work.small else 2][:2]:
            row = {"model": model, "size": size, "batch": images}
            latents = torch.randn(images, drawing.LATENT, size // 8, size // 8, device=work.place)

            def decoded(case=(model, size, images), latents=latents) -> Row:
                with source(work, *case, False, vae) as drawer:
                    seconds = drawing.timed(lambda: drawer.networks.decode(latents), work.place, 3)
                    list(drawer.blocks([0], len(latents), lambda: None))
                    started = time.perf_counter()
                    list(drawer.blocks([0], len(latents), lambda: None))
                    block = time.perf_counter() - started
                return {"decoded images/s": len(latents) / seconds, "block of 10 steps s": block, "GB": held(work)}

            yield row | attempt(decoded)


def inception(work: Work) -> Iterator[Row]:
    """Images a second of the Inception network, and how far its features are from the CPU's."""
    import torch
    import torch.distributed as dist

    from fiducial import Group
    from fiducial.evaluation.features.load import load_extractor
    from scripts.stand_ins import pictures, write_inception

    images = pictures(2 if work.small else 64, 0, 64 if work.small else 256)
    with tempfile.TemporaryDirectory() as folder:
        weights = {"inception": write_inception(Path(folder) / "weights.pth")}
        places = [work.place, torch.device("cpu")]
        there, here = (load_extractor("inception", weights, Group(0, 1, 0, "0", place, dist.HashStore())) for place in places)
        seconds = drawing.timed(lambda: there.run(images), work.place, 3)
        some = images[:8]
        found, expected = (extractor.run(some)[0].cpu().double() for extractor in (there, here))
    error = ((found - expected).norm() / expected.norm()).item()
    yield {"batch": len(images), "images/s": len(images) / seconds, "relative error to the CPU": error}


def attempt(measure: Callable[[], Row]) -> Row:
    """A row, or why there is none."""
    try:
        return measure()
    except Exception as error:  # of whatever kind; the next row may work
        return {"error": f"{type(error).__name__}: {one_line(error)}"}


@dataclass(frozen=True)
class Section:
    """One process; `seconds` is its limit."""

    title: str
    rows: Callable[[Work], Iterator[Row]]
    seconds: float


SECTIONS = {
    "machine": Section("Machine", machine, 20),
    "tests": Section("Tests with the marker `gpu`", tests, 160),
    "verification": Section("Verification", verification, 100),
    "denoiser": Section("One guided evaluation in bfloat16, compiled", denoiser, 180),
    "decoding": Section("Decoding in bfloat16, and whole blocks", decoding, 50),
    "inception": Section("Inception in float32", inception, 30),
}


def run(name: str, args: argparse.Namespace) -> tuple[list[Row], str]:
    """The rows of a section, as far as it came, and why it did not end; empty if it did."""
    command = [sys.executable, __file__, "--device", args.device, *["--small"] * args.small, "--section", name]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=lambda: [*map(lines.put, process.stdout), lines.put(None)], daemon=True).start()
        seconds = SECTIONS[name].seconds * (PATIENCE if args.small else 1)
        rows, until, reason, is_whole = [], time.monotonic() + seconds, "", False
        try:
            while line := lines.get(timeout=max(until - time.monotonic(), 0)):
                with suppress(ValueError):
                    rows.append(json.loads(line))
            is_whole = True
        except queue.Empty:
            reason = f"ended after its {seconds:.0f} s"
        finally:
            if not is_whole:
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started, which would go on beside the next section
        if process.wait() and not reason:
            errors.seek(0)
            reason = f"failed: {' '.join(errors.read().split())[-500:]}"
    return rows, reason


def table(rows: list[Row]) -> list[str]:
    """Rows as Markdown."""
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")

    body = (f"| {' | '.join(cell(row.get(name, '')) for name in columns)} |" for row in rows)
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *body] if rows else ["nothing"]


def markdown(found: dict[str, dict]) -> str:
    lines = []
    for name, section in found.items():
        ended = f" ({section['ended']})" if section["ended"] else ""
        lines += [f"## {SECTIONS[name].title}", "", *table(section["rows"]), "", f"{section['seconds']:.0f} s{ended}", ""]
    return "\n".join(lines)


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="(default %(default)s)")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that everything works")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument("--section", choices=SECTIONS, help="one section in this process; for this script's own use")
    return parser


def main() -> int:
    args = build_parser().parse_args()
    if args.section:
        for row in SECTIONS[args.section].rows(Work(args.device, args.small)):
            print(json.dumps(row), flush=True)
        return 0
    for option, path, ending in (("--json", args.json, ".json"), ("--markdown", args.markdown, ".md")):
        if path:
            require_ending(option, path, ending)
            if not path.absolute().parent.is_dir():
                raise UserError(f"{option} {path}: its folder is not there")
    found: dict[str, dict] = {}
    for name in args.only:
        started = time.monotonic()
        rows, ended = run(name, args)
        found[name] = {"rows": rows, "ended": ended, "seconds": time.monotonic() - started}
        if args.markdown:
            args.markdown.write_text(markdown(found))
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    say(*markdown(found).splitlines())
    failed = [name for name, section in found.items() if section["ended"] or any("error" in row for row in section["rows"])]
    failed += [
        name for name, section in found.items() if any(row.get("outcome") in ("failed", "error") for row in section["rows"])
    ]
    return 1 if failed else 0


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
