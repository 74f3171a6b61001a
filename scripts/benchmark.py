r"""Measures Fiducial against its peers: each in a process of its own, as it comes, in turns, medians of the repeats.

    python scripts/benchmark.py evaluation
    python scripts/benchmark.py evaluation --only extraction --images 64 --repeats 1
    python scripts/benchmark.py sampling
    python scripts/benchmark.py sampling --model DiT-XL/2 --device cuda --images 32 --steps 250 --only denoising pipeline \
        --options='--precision bf16 --compile --cuda-tuning'
    python scripts/benchmark.py sampling --only plain --model LightningDiT-B/1
    python scripts/benchmark.py io --images 50000
    python scripts/benchmark.py scaling --json scaling.json --markdown scaling.md

evaluation: the peers are torch-fidelity, pytorch-fid and scipy. All get the same weights of Inception (random ones, unless
--inception-weights names a file), the same PNGs and the same number of threads.
sampling: the peers are diffusers' DiT and DiTPipeline, as they come and in bfloat16, and our own --exact; random weights of a DiT
and of Stable Diffusion's VAE at 256 x 256. FID-digits by precision and by sampler and steps are of the embedded model.
io: packing an npz of 256 x 256 images, against a plain loop over the PNGs. 50,000 take 20 GB of disk.
scaling: what a run costs beside drawing, from 1,000 to 10 million images and at 1,024 ranks, with a stub in the place of the
networks. Ratios hold for one machine in one run.
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
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version

import numpy as np

from fiducial import STDOUT, Parser, UserError, require_ending, say_result, stdout_kept, user_errors
from scripts import benchmark_evaluation as evaluating
from scripts import benchmark_runs as runs
from scripts import benchmark_sampling as drawing
from scripts.benchmark_work import IMAGE_SIZE, Measured, Work, memory_above, seconds


@dataclass(frozen=True)
class Benchmark:
    """Contestants, the first ours; the goal is a ratio of each peer's seconds to those of ours."""

    title: str
    contestants: dict[str, Callable[[Work], Measured]]
    whole_process: bool = False  # time the process from start to end, imports and all
    images: bool = False  # state images a second


EVALUATION = {
    "extraction": Benchmark(
        "Features of {images} PNGs of 256 x 256 (Fiducial: sFID's too, hashes, and the cache on disk)",
        {
            "Fiducial, float32": lambda work: evaluating.extract_ours(work, "float32"),
            "Fiducial, bfloat16": lambda work: evaluating.extract_ours(work, "bfloat16"),
            "torch-fidelity": evaluating.extract_torch_fidelity,
            "pytorch-fid": evaluating.extract_pytorch_fid,
        },
        images=True,
    ),
    "six networks": Benchmark(
        "Features of {images} PNGs of 256 x 256 by six tiny networks of timm's",
        {"one pass": lambda work: evaluating.extract_six(work, 1), "six passes": lambda work: evaluating.extract_six(work, 6)},
        images=True,
    ),
    "fid": Benchmark(
        "Fréchet distance at 2,048 dimensions, known answer",
        {"Fiducial": evaluating.fid_ours, "scipy's sqrtm": evaluating.fid_scipy},
    ),
    "precision-recall": Benchmark(
        "Precision and recall of {samples} samples and {reference} reference images at 2,048 dimensions",
        {"Fiducial": evaluating.precision_recall_ours, "torch-fidelity": evaluating.precision_recall_torch_fidelity},
    ),
    "everything": Benchmark(
        "IS, FID, KID, precision and recall of {images} against {images} PNGs, the whole process",
        {"Fiducial": evaluating.everything_ours, "torch-fidelity": evaluating.everything_torch_fidelity},
        whole_process=True,
    ),
}


def packing(way: Callable[[Path, int], object]) -> Callable[[Work], Measured]:
    """`way` of packing the prepared run, after a look at its files, so that all find them in memory as far as they fit."""
    return lambda work: memory_above(lambda: seconds(lambda: way(work.folder / "run", work.images)))


IO = {
    "packing": Benchmark(
        "The npz of {images} images of 256 x 256",
        {
            "Fiducial, places filled while drawing": packing(lambda run, count: runs.pack(run, count, IMAGE_SIZE, False)),
            "Fiducial, from PNGs alone": packing(lambda run, count: runs.pack(run, count, IMAGE_SIZE, True)),
            "a plain PIL loop": packing(runs.pack_plainly),
        },
    ),
}


def growing(
    measured: Callable[[Path, int], object], prepare: Callable[[Path, int], object] | None = None, most: int = 10_000_000
) -> dict[str, Callable[[Work], Measured]]:
    """A contestant for each size, up to `most` images, after its own preparation in a folder of its own."""

    def contestant(count: int) -> Callable[[Work], Measured]:
        def run(_: Work) -> Measured:
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / "run"
                if prepare:
                    prepare(place, count)
                return memory_above(lambda: seconds(lambda: measured(place, count)))

        return run

    return {name: contestant(count) for name, count in runs.SIZES.items() if count <= most}


def recorded(place: Path, count: int) -> None:
    runs.make_run(place, count, runs.TINY, None)


SCALING = {
    "plan": Benchmark(
        "From the records, nine of ten images done, to one rank's blocks among 1,024",
        growing(runs.plan_work, lambda place, count: (recorded(place, count), runs.undo_some(place, count))),
    ),
    "merging": Benchmark(
        "Moving what 1,024 ranks recorded, a tenth of all images, into the table",
        growing(
            lambda place, _: runs.merge_parts(place), lambda place, count: (recorded(place, count), runs.give_parts(place, count))
        ),
    ),
    "npz": Benchmark(
        "Checksums, labels and directory of the npz",
        growing(lambda place, count: runs.complete(place, count, runs.TINY), recorded),
    ),
    "run": Benchmark(
        "A whole run of 8 x 8 images by one rank, --no-png, a stub in the place of the networks",
        growing(lambda place, count: runs.draw_stubs(place, count, False), most=1_000_000),
    ),
    "run with PNGs": Benchmark(
        "A whole run of 8 x 8 images by one rank, with PNGs, a stub in the place of the networks",
        growing(lambda place, count: runs.draw_stubs(place, count, True), most=1_000_000),
    ),
    "evaluation": Benchmark(
        "Hashes and statistics of the npz, a stub in the place of Inception",
        growing(runs.evaluate_stubs, lambda place, count: runs.draw_stubs(place, count, False), most=1_000_000),
    ),
    "start": Benchmark(
        "Ranks on one machine finding each other and hearing of a million images, half of them done at random",
        {
            f"{ranks:,} ranks": lambda _, ranks=ranks: memory_above(lambda: seconds(lambda: runs.start_ranks(ranks, 1_000_000)))
            for ranks in (8, 64, 1024)
        },
    ),
}


def sampling(way: Callable[..., Measured], *given: object, **options: object) -> Callable[[Work], Measured]:
    """`way` of drawing, with what it is given."""
    names = [field.name for field in fields(drawing.Drawing)]
    return lambda work: way(drawing.Drawing(**{name: getattr(work, name) for name in names}), *given, **options)


SAMPLING = {
    "denoising": Benchmark(
        "One guided step of {images} images",
        {
            "Fiducial": sampling(drawing.denoise_ours),
            "Fiducial, attention by torch's own kernel": sampling(drawing.denoise_ours, "--attention", "sdpa"),
            "Fiducial, not compiled": sampling(drawing.denoise_ours, "--no-compile"),
            "Fiducial, fp32": sampling(drawing.denoise_ours, "--precision", "fp32"),
            "Fiducial, fp32, not compiled": sampling(drawing.denoise_ours, "--precision", "fp32", "--no-compile"),
            "Fiducial --exact, which takes one thread": sampling(drawing.denoise_ours, "--exact"),
            "diffusers": sampling(drawing.denoise_theirs, "fp32"),
            "diffusers, bf16": sampling(drawing.denoise_theirs, "bf16"),
            "diffusers, bf16, compiled": sampling(drawing.denoise_theirs, "bf16", compiled=True),
        },
    ),
    "plain": Benchmark(
        "One guided step of {images} images by {model}",
        {
            "Fiducial": sampling(drawing.step_ours),
            "Fiducial, not compiled": sampling(drawing.step_ours, "--no-compile"),
            "Fiducial, fp32": sampling(drawing.step_ours, "--precision", "fp32"),
            "Fiducial, fp32, not compiled": sampling(drawing.step_ours, "--precision", "fp32", "--no-compile"),
            "a plain eager writing, fp32": sampling(drawing.step_plainly, "fp32"),
            "a plain eager writing, bf16": sampling(drawing.step_plainly, "bf16"),
        },
    ),
    "decoding": Benchmark(
        "Latents of {images} images to pixels",
        {
            "Fiducial": sampling(drawing.decode_ours),
            "Fiducial, all images at once": sampling(drawing.decode_ours, "--no-vae-slicing"),
            "Fiducial, fp32": sampling(drawing.decode_ours, "--precision", "fp32"),
            "Fiducial, fp32, all images at once": sampling(drawing.decode_ours, "--precision", "fp32", "--no-vae-slicing"),
            "Fiducial --exact, which takes one thread": sampling(drawing.decode_ours, "--exact"),
            "diffusers": sampling(drawing.decode_theirs, "fp32"),
            "diffusers, bf16": sampling(drawing.decode_theirs, "bf16"),
        },
    ),
    "pipeline": Benchmark(
        "{images} images in {steps} steps",
        {
            "Fiducial, pixels in memory": sampling(drawing.pipeline_ours, with_png=False),
            "Fiducial, PNGs and npz": sampling(drawing.pipeline_ours),
            "Fiducial --exact, which takes one thread, PNGs and npz": sampling(drawing.pipeline_ours, "--exact"),
            "diffusers' DiTPipeline": sampling(drawing.pipeline_theirs, "fp32"),
            "diffusers' DiTPipeline, bf16": sampling(drawing.pipeline_theirs, "bf16"),
            "diffusers' DiTPipeline, bf16, compiled": sampling(drawing.pipeline_theirs, "bf16", compiled=True),
        },
        images=True,
    ),
    "latents": Benchmark("50 DDIM steps of {images} images against the same in fp32", {"Fiducial": sampling(drawing.latents)}),
    "ranks": Benchmark(
        "Digits by ranks of one thread each",
        {"two ranks": sampling(drawing.ranks, 2), "one rank": sampling(drawing.ranks, 1)},
    ),
    "precision": Benchmark(
        "FID-digits of 1,000 digits at 50 steps, by seed",
        {
            f"{name}, seed {seed}": sampling(drawing.fid_digits, *options, "--global-seed", seed)
            for seed in drawing.SEEDS
            for name, options in (("Fiducial", []), ("Fiducial --exact", ["--exact"]))
        },
    ),
    "samplers": Benchmark(
        "FID-digits of 1,000 digits, by sampler and steps",
        {
            f"{name}, {steps} steps": sampling(drawing.fid_digits, "--sampler", name, "--num-sampling-steps", steps)
            for name in drawing.SAMPLERS
            for steps in drawing.STEP_COUNTS
        },
    ),
}
BENCHMARKS = {**EVALUATION, **IO, **SCALING, **SAMPLING}


def measure(name: str, contestant: str, work: Work, threads: int) -> Measured:
    """Run one contestant in a process of its own."""
    command = [sys.executable, __file__, "contestant", name, contestant]
    given = asdict(work) | {"folder": str(work.folder)}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    done = subprocess.run([*command, json.dumps(given)], env=environment, capture_output=True, text=True)
    elapsed = time.perf_counter() - started
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{contestant} failed in {name}: {said.removeprefix('error: ')}")
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    return measured | {"seconds": elapsed} if BENCHMARKS[name].whole_process else measured


def compare(name: str, work: Work, repeats: int, threads: int) -> dict[str, Measured]:
    """Medians of each contestant's measurements, taken in turns."""
    found: dict[str, list[Measured]] = {contestant: [] for contestant in BENCHMARKS[name].contestants}
    for turn in range(repeats):
        for contestant, turns in found.items():
            turns.append(measure(name, contestant, work, threads))
            print(f"{name}, {turn + 1} of {repeats}, {contestant}: {turns[-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    return {
        contestant: {key: statistics.median(one[key] for one in turns) for key in turns[0]} for contestant, turns in found.items()
    }


def prepare(folder: Path, weights: Path | None, images: int) -> None:
    """Weights, and two folders of PNGs."""
    from scripts.stand_ins import write_inception, write_pngs

    if weights:
        (folder / "weights.pth").symlink_to(weights.resolve())
    else:
        write_inception(folder / "weights.pth")
    for seed, name in enumerate("ab"):
        write_pngs(folder / name, noisy_pictures(images, seed))


def prepare_run(folder: Path, images: int) -> None:
    """A finished run of pictures with noise on them, which take as long to read as photographs."""
    runs.make_run(folder / "run", images, IMAGE_SIZE, noisy_pictures(min(images, runs.DISTINCT), 0))


def noisy_pictures(images: int, seed: int) -> np.ndarray:
    """Smooth pictures with noise on them, (images, 256, 256, 3) uint8."""
    from scripts.stand_ins import pictures

    clean = pictures(images, seed, IMAGE_SIZE).astype(np.int16)
    noise = np.random.default_rng(seed).integers(-8, 9, clean.shape)
    return (clean + noise).clip(0, 255).astype(np.uint8)


def hardware(threads: int) -> dict[str, str | int]:
    """The machine that it ran on."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in lines if line.count(":") == 1}
    flags = fields.get("flags", "").split()
    vectors = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return {
        "cpu": " ".join(fields.get(name, "") for name in ("model name", "cpu family", "model")) or platform.processor(),
        "instructions": " ".join(vectors),
        "threads": threads,
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        **{package: version(package) for package in ("torch", "diffusers", "torch-fidelity", "pytorch-fid", "scipy")},
    }


def markdown(results: dict[str, dict[str, Measured]], work: Work, machine: dict, repeats: int) -> str:
    """A table for each benchmark; the last column says how many times as long as the first entry each one took."""
    lines = [", ".join(f"{name} {value}" for name, value in machine.items()) + f"; medians of {repeats}", ""]
    for name, contestants in results.items():
        benchmark = BENCHMARKS[name]
        given = {name: f"{value:,}" for name, value in vars(work).items() if isinstance(value, int)}
        lines += [benchmark.title.format(**given, model=work.model) + ":", ""]
        first = next(iter(contestants.values()))
        extra = [key for key in first if key not in ("seconds", "fid")]
        header = ["", "seconds", *(["images/s"] if benchmark.images else []), *extra, "times the first"]
        lines += [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        for contestant, measured in contestants.items():
            speed = [f"{work.images / measured['seconds']:.1f}"] if benchmark.images else []
            others = [f"{measured[key]:.4g}" for key in extra]
            row = [contestant, f"{measured['seconds']:.2f}", *speed, *others, f"{measured['seconds'] / first['seconds']:.2f}"]
            lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    return "\n".join(lines)


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, benchmarks, text in (
        ("sampling", SAMPLING, "drawing against diffusers, and against --exact"),
        ("evaluation", EVALUATION, "the evaluator against its peers"),
        ("io", IO, "packing against a plain loop"),
        ("scaling", SCALING, "time and memory beside drawing, by number of images and ranks"),
    ):
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        command.set_defaults(images=1, samples=1, reference=1, inception_weights=None)
        command.set_defaults(model="", steps=1, device="cpu", image_size=IMAGE_SIZE, options=())
        command.add_argument("--only", nargs="+", choices=benchmarks, default=list(benchmarks))
        if name == "sampling":
            command.add_argument("--images", type=int, default=4, help="drawn at once (default %(default)s)")
            command.add_argument("--model", default="DiT-B/2", help="(default %(default)s)")
            command.add_argument("--image-size", type=int, default=IMAGE_SIZE, help="pixels (default %(default)s)")
            command.add_argument("--steps", type=int, default=10, help="of the pipeline (default %(default)s)")
            command.add_argument(
                "--options",
                type=str.split,
                default=(),
                metavar="TEXT",
                help="for Fiducial as it comes: --options='--no-compile'",
            )
            command.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default %(default)s)")
        elif name != "scaling":
            most = 500 if name == "evaluation" else 50_000
            command.add_argument("--images", type=int, default=most, help="PNGs on each side (default %(default)s)")
        if name == "evaluation":
            command.add_argument("--samples", type=int, default=20_000, help="for precision and recall (default %(default)s)")
            command.add_argument("--reference", type=int, default=10_000, help="for precision and recall (default %(default)s)")
            command.add_argument("--inception-weights", type=Path, metavar="FILE", help="(default: random ones)")
        command.add_argument("--repeats", type=int, default=3 if name != "scaling" else 1, help="(default %(default)s)")
        command.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process (default %(default)s)")
        command.add_argument("--json", type=Path, metavar="FILE", help="write the medians there; - is standard output")
        command.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    contestant = commands.add_parser("contestant", help="one measurement in this process; for this script's own use")
    contestant.add_argument("benchmark", choices=BENCHMARKS)
    contestant.add_argument("name")
    contestant.add_argument("work", type=json.loads)
    return parser


def main() -> None:
    args = build_parser().parse_args()
    if args.command == "contestant":
        work = Work(**args.work | {"folder": Path(args.work["folder"])})
        measured = BENCHMARKS[args.benchmark].contestants[args.name](work)
        print(json.dumps(measured or {}))
        return
    check(args)
    with stdout_kept(args.json == STDOUT):
        run_all(args)


def check(args: argparse.Namespace) -> None:
    """Raise UserError for what could not be measured, or not be written in the end."""
    for name in ("images", "samples", "reference", "repeats", "threads", "steps", "image_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    if args.command == "sampling":
        given = args.model, args.images, args.steps, args.device, args.image_size, tuple(args.options)
        drawing.check(drawing.Drawing(Path(), *given), args.only)
    if args.inception_weights and not args.inception_weights.is_file():
        raise UserError(f"--inception-weights {args.inception_weights}: no such file")
    for option, path, ending in (("--json", args.json, ".json"), ("--markdown", args.markdown, ".md")):
        if path and (option, path) != ("--json", STDOUT):
            require_ending(option, path, ending)
            if path.is_dir() or not path.absolute().parent.is_dir():
                raise UserError(f"{option} {path}: it is a folder, or its folder is not there")


def run_all(args: argparse.Namespace) -> None:
    """Every contestant of every benchmark that is asked for; the tables are printed in the end."""
    with tempfile.TemporaryDirectory() as folder:
        given = {
            name: getattr(args, name) for name in ("images", "samples", "reference", "model", "steps", "device", "image_size")
        }
        work = Work(Path(folder), options=tuple(args.options), **given)
        if {"extraction", "six networks", "everything"} & set(args.only):
            prepare(work.folder, args.inception_weights, args.images)
        if {"denoising", "plain", "decoding", "pipeline", "latents"} & set(args.only):
            drawing.write_networks(work.folder, args.model, args.image_size)
        if args.command == "io":
            prepare_run(work.folder, args.images)
        machine, results = hardware(args.threads), {}
        for name in args.only:
            results[name] = compare(name, work, args.repeats, args.threads)
            report(results, work, machine, args)  # after each, so that one that fails takes no other along
    print(markdown(results, work, machine, args.repeats))
    if args.json == STDOUT:
        say_result(medians(results, work, machine, args))


def report(results: dict[str, dict[str, Measured]], work: Work, machine: dict, args: argparse.Namespace) -> None:
    """Write what was measured so far."""
    if args.markdown:
        args.markdown.write_text(markdown(results, work, machine, args.repeats))
    if args.json and args.json != STDOUT:
        args.json.write_text(medians(results, work, machine, args) + "\n")


def medians(results: dict[str, dict[str, Measured]], work: Work, machine: dict, args: argparse.Namespace) -> str:
    """All measurements so far, and how they were made, as JSON."""
    given = {name: value for name, value in asdict(work).items() if name != "folder"}
    return json.dumps({"machine": machine, "repeats": args.repeats, "work": given, "medians": results}, indent=2)


if __name__ == "__main__":
    with user_errors():
        main()
