"""Facts of a checkpoint or an autoencoder, and the command that samples it: `python -m models inspect`."""

import argparse
import json
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fiducial import UserError, say, stdout_kept
from fiducial.classes import names_of_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from fiducial.models.checkpoints.checkpoint import Checkpoint
    from fiducial.models.decoders.autoencoder import Autoencoder
    from fiducial.models.decoders.table import Decoder


USUAL_VAE, USUAL_GUIDED = "ema", 3  # of sample_ddp.py, where nothing is given


def add_parser(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "inspect",
        help="what a checkpoint or autoencoder is, and what samples it",
        description="Says what a checkpoint (file or diffusers folder), an autoencoder (diffusers folder, or a file such as "
        "--vae takes) or a file of latents' statistics is. The command that "
        "it gives takes the autoencoder in the folder vae beside the checkpoint, as in a DiTPipeline's, else Stable Diffusion's.",
        allow_abbrev=False,
    )
    command.add_argument("path", type=Path, help="file or folder")
    command.add_argument(
        "--probe",
        action="store_true",
        help="load a checkpoint's network too, and see what it makes of pure noise, as a run does: a SiT has the keys of a DiT",
    )
    command.add_argument(
        "--weights-key", metavar="KEY", help="which weights of a checkpoint that holds several (default: its EMA)"
    )
    command.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> int:
    with stdout_kept(args.json):
        found = inspect(args.path, args.probe, args.weights_key)
    if args.json:
        say(json.dumps(found))
    else:
        for name, value in found.items():
            if value is not None:
                say(f"{name + ':':20}{readable(value)}")
    return 1 if found.get("refused") else 0


def readable(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)


def inspect(path: Path, probed: bool = False, weights_key: str | None = None) -> dict[str, str | int | float | bool | None]:
    """The facts of a file or folder, in the order in which they read well.

    Args:
        probed: load a checkpoint's network, and see what it makes of pure noise.
        weights_key: which weights of a checkpoint; None: the EMA, where it has one.

    Raises:
        UserError: if it is neither a checkpoint nor an autoencoder nor statistics of latents, or damaged.
    """
    if is_autoencoder(path):
        return inspect_autoencoder(path)
    if path.is_file() and weights_key is None and not probed:
        from fiducial.models.commands import single_files

        if found := single_files.inspect(path):
            return found
    return inspect_checkpoint(path, probed, weights_key)


def is_autoencoder(folder: Path) -> bool:
    """Whether a folder says of itself that it is an autoencoder, of whichever kind."""
    from fiducial.models.checkpoints.checkpoint import read_json
    from fiducial.models.decoders.autoencoder import CONFIG_FILE

    try:
        return "Autoencoder" in str(read_json(folder / CONFIG_FILE).get("_class_name"))
    except UserError:
        return False


def inspect_checkpoint(path: Path, probed: bool, weights_key: str | None) -> dict[str, str | int | bool | None]:
    from fiducial.models.checkpoints import checkpoint, label_table, shapes
    from fiducial.models.decoders import autoencoder, pixels
    from fiducial.models.networks.table import NETWORKS, USUAL, family_of, kin

    found = checkpoint.read(path, weights_key)
    shape = shapes.describe(found.state, path, found.family if found.family in NETWORKS else USUAL)
    shape["num_classes"], has_null = label_table.classes_of(found)
    vae, unusable = autoencoder_beside(path)
    if vae is None and shape["latent"].channels == pixels.Pixels.latent_channels:
        vae = pixels.Pixels(Path(pixels.NAME))
    size = shape["latent"].size * (vae.factor if vae else autoencoder.USUAL_FACTOR)
    # Weights alone look the same for both, unless the arguments of their training are beside them.
    is_open = found.family == USUAL and not found.says_family
    told, refused, probed_as = {}, why_not(found, shape, has_null, vae), None
    unusual = NETWORKS[found.family].unusual(found.trained) if found.family in NETWORKS else {}
    if probed and not unusual:  # else nobody knows what it makes of pure noise
        families = [spec.name for spec in kin(None)] if is_open else [found.family]
        able = [one for one in as_families(shape, families) if not why_not(found, one, has_null, vae)]
        told, reason, as_one = ask_each(found, able)
        if as_one:
            refused, probed_as, shape = None, family_of(as_one["model"]), as_one
        refused = refused or reason
    unsaid = probed_as not in (None, found.family)
    words = shell_words(options_for(found, shape, has_null, vae, unsaid, weights_key))
    return {
        "path": str(path),
        "family": family_in_words(bool(told), probed_as) if is_open else found.family,
        "form": found.form,
        **shapes.named(shape),
        "null_label": None if has_null else "none, so it is drawn without guidance",
        "image_size": size,
        "learn_sigma": shapes.learns_sigma(found.state),
        "weights": found.weights,
        "beside": found.beside or None,
        "said": "; ".join(label_table.contradictions(found, path, size)) or None,
        "unused": ", ".join(f"{name}*" for name in found.unused) or None,
        "latents": "of scale and bias by channel, which it holds" if found.statistics else None,
        "trained": ", ".join(f"{name} {value}" for name, value in unusual.items()) or None,
        "step": found.step,
        "dtype": dtypes(found.state.values()),
        "parameters": sum(value.numel() for value in found.state.values()),
        "sha256": checkpoint.sha256(path),
        "network": arithmetic_of(found),
        **told,
        "vae": unusable,
        "refused": refused,
        "command": None if refused else shlex.join(["python", "sample_ddp.py", *words]),
    }


def autoencoder_beside(path: Path) -> tuple["Autoencoder | None", str | None]:
    """The autoencoder that came with a checkpoint, if there is one, or why it cannot be used."""
    from fiducial.models.decoders.autoencoder import Autoencoder

    if not is_autoencoder(beside := folder_beside(path)):
        return None, None
    try:
        vae = Autoencoder(beside)
        vae.identity()
    except UserError as error:
        return None, f"the autoencoder beside it cannot be used ({error})"
    return vae, None


def family_in_words(is_asked: bool, probed_as: str | None) -> str:
    """The family of a network whose file does not tell it."""
    from fiducial.models.networks.table import NETWORKS, kin

    if not is_asked:
        return f"{', or '.join(spec.name for spec in kin(None))}, as the file does not tell; --probe does"
    if probed_as is None:
        return "none that was trained to predict noise, though its keys are a DiT's"
    return f"{probed_as}, as it predicts {NETWORKS[probed_as].predicts}"


def arithmetic_of(found: "Checkpoint") -> str | None:
    """Whose arithmetic a network in diffusers' form was trained by, as far as its blocks tell."""
    from fiducial.models.checkpoints.diffusers_form import has_own_embedders

    if has_own_embedders(found.state):
        return "diffusers, as only one trained there has embedders in each block"
    return "official, as its blocks share their embedders" if "diffusers" in found.form else None


def as_families(shape: dict, families: Iterable[str]) -> list[dict]:
    """The same network as one of each of these families."""
    return [shape | {"model": f"{family}-{shape['model'].partition('-')[2]}"} for family in families]


def ask_each(found: "Checkpoint", shapes: list[dict]) -> tuple[dict, str | None, dict | None]:
    """The network's answer to pure noise as the first of these that it behaves as, and that one; as none of them, what it made
    as the first, and why that is refused."""
    told, refused = {}, None
    for shape in shapes:
        answers, reason = ask(found, shape)
        if not reason:
            return answers, None, shape
        told, refused = told or answers, refused or reason
    return told, refused, None


def options_for(
    found: "Checkpoint", shape: dict, has_null: bool, vae: "Decoder | None", unsaid: bool, weights_key: str | None
) -> dict[str, object]:
    """The options with which `sample_ddp.py` draws from such weights; the rest is in the file.

    Args:
        unsaid: the file does not tell the family.
    """
    from fiducial.models.checkpoints.diffusers_form import has_own_embedders
    from fiducial.models.networks.table import NETWORKS, family_of

    options = {"ckpt": found.path} | ({"vae": vae.folder} if vae else {})
    if unsaid:
        options["model"] = shape["model"]
    if weights_key is not None:
        options["weights-key"] = weights_key
    if not has_null:
        options["cfg-scale"] = 1.0
    if found.trained.get("prediction") in ("noise", "score"):  # which tell no image of pure noise
        options["grid"] = "places,start=0.999"
    spec, channels = NETWORKS[family_of(shape["model"])], shape["latent"].channels
    guided = min(spec.guided or channels, vae.latent_channels if vae else channels)
    if spec.guidance == "trained":
        options["cfg-scale"] = 1.0
    elif spec.guidance == "outside" and guided != USUAL_GUIDED:
        options["cfg-channels"] = guided
    return options | ({"network": "diffusers"} if has_own_embedders(found.state) else {})


def shell_words(options: dict[str, object]) -> list[str]:
    """Options as they stand on a command line."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def folder_beside(path: Path) -> Path:
    """Where the autoencoder of a checkpoint is, if it came with one."""
    return path / "vae" if (path / "transformer").is_dir() else path.parent / "vae"


def why_not(found: "Checkpoint", shape: dict, has_null: bool, vae: "Decoder | None") -> str | None:
    """Why `sample_ddp.py` would not take this checkpoint with the command given for it, in its own words."""
    from fiducial.models.checkpoints import checkpoint, shapes
    from fiducial.models.decoders import autoencoder

    path = found.path
    try:
        checkpoint.require_family(found, path, None)
        shapes.require_known(shape, path)
        channels, name = (vae.latent_channels, str(vae.folder)) if vae else (autoencoder.USUAL_CHANNELS, USUAL_VAE)
        autoencoder.require_channels(channels, shape["latent"].channels, name, path)
        shapes.check(found.state, path, **shape, has_null=has_null)
        names_of_checkpoint(None, path, found.class_to_idx, shape["num_classes"])
    except UserError as error:
        return str(error)
    return None


def ask(found: "Checkpoint", shape: dict) -> tuple[dict[str, float | str | None], str | None]:
    """The answer of a checkpoint's network to pure noise, and why `sample_ddp.py` would therefore refuse it, if it would."""
    import torch

    from fiducial.models import probe
    from fiducial.models.checkpoints.diffusers_form import has_own_embedders
    from fiducial.models.networks.table import spec_of

    cpu, arithmetic = torch.device("cpu"), "diffusers" if has_own_embedders(found.state) else "official"
    dit = found.load(shape["model"], shape["num_classes"], cpu, arithmetic)
    with_null = dit.null_label is not None  # it is guided by default then
    spec = spec_of(shape["model"])
    response, refused = probe.respond(dit, shape["num_classes"], shape["latent"].size, cpu, with_null, spec), None
    try:
        probe.require(response, found.path, spec)
    except UserError as error:
        refused = str(error)
    return response.recorded() | {"doubt": None if refused else probe.doubt_of(response.recorded())}, refused


def dtypes(tensors: "Iterable[Tensor]") -> str:
    """The dtype of all of them; of several, each with the number of tensors that have it."""
    counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{dtype} ({n})" for dtype, n in counts.most_common())


def inspect_autoencoder(folder: Path) -> dict[str, str | int | float]:
    """Load it too, because only that shows whether weights and configuration belong together."""
    import torch

    from fiducial.models.checkpoints.checkpoint import read_safetensors
    from fiducial.models.decoders import autoencoder

    vae = autoencoder.Autoencoder(folder)
    vae.identity()  # which looks at the weights
    vae.load(torch.device("cpu"))
    weights = read_safetensors(folder / autoencoder.WEIGHTS_FILE).values()
    return {
        "path": str(folder),
        "family": vae.kind,
        "latent_channels": vae.latent_channels,
        "factor": vae.factor,
        "scale": vae.scale,
        "shift": vae.shift,
        "dtype": dtypes(weights),
        "parameters": sum(value.numel() for value in weights),
        "sha256": vae.sha256,
        "option": shlex.join(["--vae", str(folder)]),
    }
