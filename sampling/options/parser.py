"""The options of the command that draws, and the configuration that they come to. No torch."""

import argparse
from dataclasses import MISSING, fields, replace
from pathlib import Path

from fiducial import Parser, UserError, say, tensorboard
from fiducial.diffusion.guidance import SCHEDULES
from fiducial.diffusion.paths import PATHS
from fiducial.diffusion.prediction import MEAN_VELOCITY, PREDICTIONS
from fiducial.diffusion.samplers import Choice, own_options
from fiducial.evaluators import ALIASES, FOLLOWED
from fiducial.models.decoders import rounding
from fiducial.sampling.options import presets
from fiducial.sampling.options.choices import ENDS, INNER_HEAD, NULL_LABEL, STATES, overruled
from fiducial.sampling.options.config import PUBLISHED, SAMPLERS, SamplingConfig
from fiducial.sampling.options.file import given_options

DESCRIPTION = """Draws images from a class-conditional DiT on every GPU (or CPU process) there is, and packs them into one npz.

    torchrun --nproc_per_node=8 sample_ddp.py --preset dit-xl-2-256 --ref adm-imagenet-256
    torchrun --nproc_per_node=8 sample_ddp.py --ckpt DiT-XL-2-256x256.pt --cfg-scale 1.5
    torchrun --nproc_per_node=2 sample_ddp.py --preset digits --ref digits
    python sample_ddp.py --preset digits --num-fid-samples 100 --labels 7,7,3-5
    torchrun --nproc_per_node=2 sample_ddp.py --preset digits --ref digits --evaluate-online
    python sample_ddp.py --config samples/RUN/manifest.json --global-seed 1 --dry-run

The same command run again continues where the last one ended, with any number of processes.
"""


def build_parser() -> Parser:
    parser = Parser(
        prog="sample_ddp.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    default = {field.name: field.default for field in fields(SamplingConfig) if field.default is not MISSING} | PUBLISHED
    add_what(parser.add_argument_group("what is sampled"), default)
    add_how(parser.add_argument_group("how"), default)
    add_speed(parser.add_argument_group("how fast"))
    where = parser.add_argument_group("where to, and what then")
    add_where(where, default)
    tensorboard.add_options(where, "images/s, memory, a sheet of samples and, with --ref, each metric with its interval")
    return parser


def add_what(what: argparse._ArgumentGroup, default: dict) -> None:
    what.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="options from a YAML file (cfg-scale: 1.5), or from a run's manifest.json, which repeats that run; the command line "
        "wins over it, and it over --preset; paths in it are relative to the current directory",
    )
    what.add_argument(
        "--preset",
        metavar="NAME",
        help="digits: the embedded model with its VAE, classes and settings, digits-flow the same as a SiT; dit-xl-2-256, -512: "
        "as DiT's published numbers; list prints all, each with its published row, which the evaluation sets beside what is "
        "measured",
    )
    what.add_argument(
        "--model",
        help="DiT-, SiT-, REPA- or MeanFlow- with XL, L, B or S and /2, /4 or /8, such as SiT-XL/2, and the sizes of "
        "LightningDiT-, JiT-, DDT-, RAE- and iMF- (docs/your-model.md) (default: what --ckpt says, where bare weights are a "
        f"DiT's; without it {default['model']})",
    )
    what.add_argument(
        "--ckpt",
        type=Path,
        help="weights of a network of one of these families: official .pt, a training checkpoint (its EMA), .safetensors; a "
        "folder of a DiTTransformer2DModel or DiTPipeline, or the hub id of one; published:NAME, a file that --preset list "
        "tells of; hf:OWNER/NAME/FILE, a file of the hub (default: the published ones, where one file is of that model, "
        "downloaded once)",
    )
    what.add_argument(
        "--generator",
        metavar="MODULE:FUNCTION",
        help="Python of your own that draws instead of a network: function(labels, noise, device) gives the images of a block, "
        "uint8 or floats in [0, 1]; with --image-size and --num-classes (docs/generators.md)",
    )
    what.add_argument(
        "--generator-options", metavar="NAME=VALUE,...", help="what that function is given by keyword, part of the run"
    )
    what.add_argument(
        "--weights-key",
        metavar="KEY",
        help="which weights of a file that holds several, by what they are called there, such as model or state_dict.ema_net; "
        "python -m models inspect lists them (default: its EMA, whatever that is called, else the only ones)",
    )
    what.add_argument(
        "--network",
        choices=["official", "diffusers"],
        help="whose arithmetic, whatever form the weights have: diffusers' DiTTransformer2DModel has other timestep frequencies "
        "and another epsilon in a norm than the network that published weights, also those in diffusers' form, were trained "
        "with; choose it for what was trained in diffusers itself (default official)",
    )
    add_codec(what, default)
    add_shape(what, default)


def add_shape(what: argparse._ArgumentGroup, default: dict) -> None:
    what.add_argument(
        "--image-size", type=int, help=f"pixels (default: what --ckpt and --vae say; without --ckpt {default['image_size']})"
    )
    what.add_argument(
        "--num-classes",
        type=int,
        help=f"classes; the null label is this number (default: what --ckpt says; without it {default['num_classes']})",
    )
    what.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="the training folder, whose subfolders are the classes, or their names as JSON (class_to_idx, a list) or text, "
        "one a line (default: what the checkpoint or CKPT.classes.json says; ImageNet's for 1000 classes)",
    )


def add_codec(what: argparse._ArgumentGroup, default: dict) -> None:
    what.add_argument(
        "--vae",
        help="ema, mse, a local diffusers folder (AutoencoderKL, AutoencoderTiny), a hub id, a file (also as for --ckpt), or "
        f"pixels for a network that has no latents (default {default['vae']})",
    )
    what.add_argument(
        "--latent-stats",
        metavar="FILE",
        help="by what the latents that the model was trained on were normalised, for each channel or element: mean and std (or "
        "var), or scale and shift, in a .pt, .safetensors, .npz or .json (also as for --ckpt), or as mean=0.1:0.2,std=1.5:2 or "
        "scale=0.13025 "
        "(default: what --ckpt holds, or the configuration of --vae)",
    )
    what.add_argument(
        "--latent-multiplier",
        type=float,
        metavar="X",
        help="by which the model's latents are larger than --latent-stats make them",
    )
    what.add_argument(
        "--vae-output",
        choices=rounding.OUTPUTS,
        help="what a ViT decoder's numbers are: imagenet, pixels as ImageNet's mean and deviation normalise them (RAE's), or "
        "unit, from 0 to 1 (RAEv2's; default: as the network's family has it)",
    )
    what.add_argument(
        "--rounding",
        metavar="RULE",
        help="pixels to uint8: half-up (DiT's), truncate (half a level darker: ADM's, REPA's, RAE's), half-even (JiT's, MAR's, "
        "diffusers'), or none: the evaluation gets floats, with --evaluate-online alone (default half-up)",
    )


def add_how(how: argparse._ArgumentGroup, default: dict) -> None:
    how.add_argument(
        "--num-fid-samples", type=int, help=f"images; a finished run can grow (default {default['num_fid_samples']})"
    )
    how.add_argument(
        "--labels",
        help="random; balanced (exactly, not sorted); null (unconditional); or a list of indices and class names, cycled, such "
        "as 7,3-5,tench, where a number is always an index and a comma within a name is written \\, (default random)",
    )
    how.add_argument("--cfg-scale", type=float, help=f"guidance; 1.0 is none (default {default['cfg_scale']})")
    how.add_argument(
        "--cfg-channels",
        type=int,
        help=f"latent channels guided, the first so many (default {default['cfg_channels']}, as DiT's numbers)",
    )
    how.add_argument(
        "--guidance-interval",
        type=interval,
        metavar="LO,HI",
        help="guide only here, in t / 1000: 0 is the image, 1 noise; elsewhere the null half is not computed (default 0,1)",
    )
    add_guidance(how)
    add_sampler(how, default)
    how.add_argument("--global-seed", type=int, help=f"(default {default['global_seed']})")
    how.add_argument(
        "--per-proc-batch-size",
        type=int,
        help=f"images a block, part of the run (default {default['per_proc_batch_size']}, or all if they are fewer, as a block "
        "is drawn whole; where memory does not do for it, in halves)",
    )
    how.add_argument(
        "--probe",
        action=argparse.BooleanOptionalAction,
        help="ask the network, once loaded, what it makes of pure noise, and refuse one that is not of its family (a SiT "
        "checkpoint has a DiT's keys) or was not trained; --no-probe draws from any, such as random weights (default: ask)",
    )
    how.add_argument("--device", choices=["auto", "cuda", "cpu"], help="auto takes CUDA where there is one; not run on a GPU yet")


def add_guidance(how: argparse._ArgumentGroup) -> None:
    how.add_argument(
        "--guidance-ends",
        choices=ENDS,
        help="whether ends of --guidance-interval are guided: closed, as REPA's (default); open, as DDT's and JiT's; or one open",
    )
    how.add_argument(
        "--cfg-schedule",
        choices=list(SCHEDULES),
        help="--cfg-scale over the steps: constant; linear, from 1 at noise; power-cosine, MDT's (default constant)",
    )
    how.add_argument("--cfg-power", type=float, help="power of power-cosine (default 4)")
    how.add_argument(
        "--guidance-by",
        choices=[NULL_LABEL, INNER_HEAD],
        help="guide away from the network's prediction for the null label, or from what its own inner head predicts for the same "
        "label, in one evaluation (RAEv2's; default null-label)",
    )
    how.add_argument(
        "--guidance-ckpt",
        type=Path,
        metavar="CKPT",
        help="guide away from this network's prediction for the same label (autoguidance), not from that for the null label; "
        "given as for --ckpt",
    )
    how.add_argument("--guidance-model", metavar="MODEL", help="its --model (default: what it says, where it can; else --model)")


def add_sampler(how: argparse._ArgumentGroup, default: dict) -> None:
    how.add_argument(
        "--sampler",
        choices=list(SAMPLERS),
        help="; ".join(f"{name}: {row.said}" for name, row in SAMPLERS.items()) + " (default: ddpm for a DiT, euler for a SiT)",
    )
    for name, option in own_options().items():
        named = {"choices": option.names} if isinstance(option, Choice) else {"type": float}
        usual = option.default if isinstance(option, Choice) else f"{option.default:g}"
        how.add_argument(f"--{name.replace('_', '-')}", help=f"{option.help} (default {usual})", **named)
    how.add_argument(
        "--num-sampling-steps",
        help=f"count, counts by section (10,20), or a constant stride (ddim50) (default {default['num_sampling_steps']})",
    )
    how.add_argument(
        "--grid",
        metavar="KIND,NAME=VALUE,...",
        help="places of a flow: places (N of them) or steps (N steps), and start=, end=, tail= (a last step from there to 0), "
        "shift= (s t / (1 + (s - 1) t) with t = 1 at noise), such as places,tail=0.04 or places,shift=1/0.3 (default: the "
        "sampler's)",
    )
    how.add_argument("--path", choices=list(PATHS), help="that a flow was trained on (default: as its family was published)")
    how.add_argument(
        "--prediction",
        choices=[name for name in PREDICTIONS if name != MEAN_VELOCITY],
        help="of a flow's network (default: as its family was published)",
    )
    how.add_argument("--state", choices=STATES, help="in which a flow's latents are summed; float64 is REPA's (default float32)")
    how.add_argument(
        "--least-time",
        type=float,
        help="least t by which x less the image is divided, of a network that predicts the image (default: its family's)",
    )
    how.add_argument("--noise-scale", type=float, help="standard deviation of a flow's noise (default: its family's, mostly 1)")


def add_speed(speed: argparse._ArgumentGroup) -> None:
    yes_or_no = argparse.BooleanOptionalAction
    speed.add_argument(
        "--exact",
        action=yes_or_no,
        help="fp32, deterministic: equal bytes for any number of processes, any kill and resume (one thread a process on a CPU)",
    )
    speed.add_argument(
        "--allow-mixed",
        action="store_true",
        help="draw although ranks or earlier sessions of the run have another GPU, processor, torch, diffusers, numpy or cuDNN, "
        "which --exact refuses, and others are warned of, or refuse where it is the GPU of a rank; the session records it",
    )
    speed.add_argument(
        "--precision",
        choices=["auto", "fp32", "tf32", "bf16", "fp16"],
        help="of matrix products; auto: bf16 where the hardware has it and it passes verification (--check), else tf32 on a GPU, "
        "else fp32; fp16 is slower than fp32 on a CPU without instructions for it",
    )
    speed.add_argument("--tf32", action=yes_or_no, help="the same as --precision tf32 or fp32")
    speed.add_argument(
        "--compile",
        action=yes_or_no,
        help="compile the network, which takes each process 10 s to 2 minutes first (default on a CPU, and for bf16 on a GPU)",
    )
    speed.add_argument(
        "--attention",
        choices=["auto", "sdpa", "products", "math"],
        help="torch's fastest kernel, two matrix products around a softmax, or torch's plain ones; auto: products with bf16 on "
        "a CPU without AMX, else sdpa",
    )
    speed.add_argument(
        "--check",
        choices=["quick", "full", "off"],
        help="verify on this device, before anything is drawn, that precision and compilation give what fp32 gives, and fall "
        "back to those that do, and that all ranks multiply alike: quick, once a kind of device and network; full, anew, and "
        "everything twice (default quick)",
    )
    speed.add_argument("--vae-slicing", action=yes_or_no, help="decode one image at a time (default with bf16 on a CPU)")
    speed.add_argument("--vae-tiling", action=yes_or_no, help="decode large images in overlapping tiles, which shows at seams")
    speed.add_argument(
        "--offload",
        choices=["none", "model", "vae", "both"],
        help="keep it in the host's memory while the GPU does the other's work; not run on a GPU yet",
    )
    speed.add_argument(
        "--cuda-tuning",
        action=yes_or_no,
        help="CUDA graphs with --compile, cuDNN autotuning, decoding on a stream of its own (default on a GPU where it passes "
        "verification)",
    )


def interval(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers LO,HI such as 0,0.7") from error
    return low, high


def add_where(where: argparse._ArgumentGroup, default: dict) -> None:
    where.add_argument("--sample-dir", type=Path, help=f"folder of runs (default {default['sample_dir']})")
    where.add_argument("--run-name", help="the run's folder (default: made from the configuration, so that runs cannot collide)")
    where.add_argument("--no-png", action="store_true", help="only the npz, where files are few (inode quotas)")
    where.add_argument("--png", action="store_false", dest="no_png", help="PNGs as well (default), also if --config says no-png")
    where.add_argument(
        "--hang-timeout",
        type=float,
        metavar="SECONDS",
        help="end the job if a rank makes no progress for so long; 0 for never (default 600)",
    )
    where.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, say what would be drawn and where, draw one block on each rank and say what time and memory that "
        "took; write nothing but compiled kernels and verdicts in the cache, and download nothing, so what is needed has to be "
        "there (it says what is not, and whence python -m models fetch brings it)",
    )
    where.add_argument(
        "--ref",
        help="evaluate against this afterwards: a reference npz, images, adm-imagenet-256 and the like, or digits (see "
        "python -m evaluation --help)",
    )
    where.add_argument(
        "--evaluate-online",
        action=argparse.BooleanOptionalAction,
        help="evaluate against --ref while drawing, and keep features instead of images: no PNGs, no npz",
    )
    where.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where what is downloaded is kept, and features (default ~/.cache/fiducial, and the caches of the hub and torch); "
        "python -m models fetch fills it where there is internet",
    )
    where.add_argument("--protocol", choices=FOLLOWED, help=f"whose definitions --ref follows (default {next(iter(FOLLOWED))})")
    where.add_argument(
        "--train", type=Path, metavar="IMAGES", help="training images for --ref: how many samples are copies of one"
    )
    where.add_argument(
        "--weights",
        action="append",
        metavar="NAME=FILE",
        help=f"weights of the extractor for --ref, {' or '.join(f'{name}=FILE' for name in ALIASES)} (default: downloaded)",
    )
    for name in ALIASES:
        where.add_argument(f"--{name}-weights", type=Path, metavar="FILE", help=f"the same as --weights {name}=FILE")


def parse(arguments: list[str] | None = None) -> tuple[SamplingConfig, argparse.Namespace]:
    """The configuration, and the options that no sample depends on."""
    given = given_options(build_parser(), arguments)
    defaults = {
        "device": "auto",
        "ref": None,
        "protocol": next(iter(FOLLOWED)),
        "train": None,
        "weights": None,
        **{f"{name}_weights": None for name in ALIASES},
        "no_png": False,
        "hang_timeout": 600.0,
        "allow_mixed": False,
        "dry_run": False,
        "evaluate_online": False,
        "tensorboard": None,
        "step": None,
    }
    options = {name: given.pop(name, default) for name, default in defaults.items()}
    options["preset"] = preset = given.pop("preset", None)
    if preset == presets.LIST:
        say(*presets.lines())
        raise SystemExit(0)
    if preset and "generator" in given:
        raise UserError(f"--preset {preset}: not with --generator, which draws by its own means; leave it out")
    beneath = overruled(given)
    settings = {name: value for name, value in presets.settings_of(preset).items() if name not in beneath} | given
    if settings.get("labels") == "null" and "cfg_scale" not in given:
        settings["cfg_scale"] = 1.0
    if (tf32 := settings.pop("tf32", None)) is not None:
        if "precision" in given:
            raise UserError("--tf32 and --precision: give only one of them")
        settings["precision"] = "tf32" if tf32 else "fp32"
    own = {name: settings.pop(name) for name in own_options() if name in settings}
    if "rounding" in settings:
        settings["rounding"] = rounding.recorded(settings["rounding"]) or settings["rounding"]
    config = SamplingConfig(**settings, own=own)
    config.validate()
    if "per_proc_batch_size" not in given:
        config = replace(config, per_proc_batch_size=min(config.per_proc_batch_size, config.num_fid_samples))
    if not options["hang_timeout"] >= 0:
        raise UserError(f"--hang-timeout {options['hang_timeout']}: must be a number of seconds, or 0 for never")
    check_evaluation(config, options, defaults)
    tensorboard.check(options["tensorboard"], options["step"])
    return config, argparse.Namespace(**options)


def check_evaluation(config: SamplingConfig, options: dict, defaults: dict) -> None:
    """Raise UserError for options of an evaluation that do not go with each other or with the run."""
    for name in ("weights", *(f"{name}_weights" for name in ALIASES), "protocol", "train"):
        if options[name] != defaults[name] and options["ref"] is None:
            raise UserError(f"--{name.replace('_', '-')}: only used with --ref, which is missing")
    if options["ref"] is not None and config.num_fid_samples < 2:
        raise UserError(f"--num-fid-samples {config.num_fid_samples}: --ref needs at least 2 to evaluate")
    if options["evaluate_online"] and (options["ref"] is None or options["dry_run"]):
        reason = "needs --ref" if options["ref"] is None else "--dry-run is for runs that keep their images, which take no less"
        raise UserError(f"--evaluate-online: {reason}")
    if config.rounding == rounding.NONE and not options["evaluate_online"]:
        raise UserError("--rounding none: files of images hold no floats; add --evaluate-online and --ref, or choose another")
