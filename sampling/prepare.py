"""Rank 0's part before anything is drawn: every file is held against every option, then the run folder is claimed."""

import base64
import glob
import json
import os
import platform
import zlib
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from fiducial import (
    Group,
    UserError,
    about,
    check_lengths,
    make_folder,
    nearest,
    open_new,
    open_to_write,
    read_text,
    require_place,
    say,
    unwritable,
    warn,
)
from fiducial.classes import GUESSED, ClassNames, difference, names_of_checkpoint
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.models.checkpoints import candidates, checkpoint, label_table
from fiducial.models.decoders import autoencoder
from fiducial.models.decoders.files import CodecFiles
from fiducial.models.decoders.table import decoder_of
from fiducial.models.networks.table import spec_of
from fiducial.sampling import numerics
from fiducial.sampling.drawing import Drawer
from fiducial.sampling.memory import MOST
from fiducial.sampling.noise import NOISE_VERSION
from fiducial.sampling.numerics import RESOLVED, Numerics
from fiducial.sampling.options import class_names as classes
from fiducial.sampling.options.config import AUTO, FINGERPRINT_LETTERS, SamplingConfig, fingerprint
from fiducial.sampling.options.file import recorded
from fiducial.sampling.store import disk, records
from fiducial.sampling.store import manifest as output
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store.folder import ENDED, MANIFEST, ONLINE, RESERVE, RESERVED, longest_path, read_ended
from fiducial.sampling.store.lock import LOCK, Lock
from fiducial.sampling.store.png import png_path

PACKAGES = ("torch", "diffusers", "numpy", "pillow", "safetensors")
TRYING_SECONDS = 300  # for the compiler to show that it works
SHORTER = "choose a shorter --run-name or --sample-dir"
SHOWN = 100  # characters of a value in a message
EVENTS_KEPT = 1000  # of a session, in the manifest
EVENTS_BYTES = 1 << 26  # of a rank


@dataclass(frozen=True)
class Task:
    """What rank 0 found to be done, in the form in which it is published to every rank."""

    folder: Path
    npz: Path  # as it is called while it is worked on
    session: int
    token: str  # of the folder's lock
    input_size: int
    in_channels: int
    checkpoint_sha256: str
    vae_sha256: str
    how: Numerics
    batch_size: int  # of a block
    labels: str  # as `--labels`, without names
    done: np.ndarray  # (N,) bool
    mark: int = 0  # of its records

    def to_json(self) -> str:
        bits = base64.b64encode(zlib.compress(np.packbits(self.done))).decode()
        fields = {"folder": str(self.folder), "npz": str(self.npz), "count": len(self.done), "done": bits}
        fields["how"] = asdict(self.how)
        return json.dumps(vars(self) | fields)

    @classmethod
    def from_json(cls, text: str) -> "Task":
        fields = json.loads(text)
        bits = np.frombuffer(zlib.decompress(base64.b64decode(fields["done"])), dtype=np.uint8)
        done = np.unpackbits(bits, count=fields.pop("count")).astype(bool)
        fields |= {"folder": Path(fields["folder"]), "npz": Path(fields["npz"]), "how": Numerics(**fields["how"])}
        return cls(**fields | {"done": done})

    @property
    def told(self) -> Path:
        """The file that says what the run is."""
        return self.folder / (ONLINE if self.npz == self.folder else MANIFEST)

    @property
    def missing(self) -> int:
        return int((~self.done).sum())


@dataclass(frozen=True)
class Found:
    """What the checks before a run have found; nothing is written by then."""

    identity: dict  # with "auto" as the batch size where none was found yet
    folder: Path
    manifest: dict | None
    done: np.ndarray  # (N,) bool, as recorded so far
    how: Numerics
    size: tuple[int, int]  # and channels of a latent
    vae: CodecFiles
    names: ClassNames | None

    def task(self, npz: Path, session: int, token: str, done: np.ndarray) -> Task:
        """What is to be done, once the size of a block is known."""
        shas = self.identity["checkpoint_sha256"], self.identity["vae_sha256"]
        batch_size = self.identity["per_proc_batch_size"]
        labels, mark = self.identity["labels"], self.manifest and output.mark(self.manifest)
        return Task(self.folder, npz, session, token, *self.size, *shas, self.how, batch_size, labels, done, mark or 0)


def examine(config: SamplingConfig, group: Group, with_png: bool) -> Found:
    """Checks everything, and writes nothing.

    Raises:
        UserError: if something given cannot be used.
    """
    identity, size, vae = inspect(config, group)
    config, names = replace(config, labels=identity["labels"]), class_names(config)
    how = Numerics(**{name: identity[name] for name in RESOLVED})
    folder = config.sample_dir / config.named_run(fingerprint(identity))
    check_lengths(SHORTER, *(at(folder) for at in (archive.part_path, longest_path)))
    manifest = output.read_manifest(folder)
    if manifest and config.per_proc_batch_size == AUTO:
        identity["per_proc_batch_size"] = manifest["identity"]["per_proc_batch_size"]
    check_kind(folder, MANIFEST)
    check_folder(folder, manifest, config, identity)
    check_names(folder, manifest, names)
    if manifest is None and config.run_name is None:
        tell_of_siblings(folder, identity)
    done = np.zeros(config.num_fid_samples, dtype=bool)
    if manifest:
        check_records(folder, manifest)
        done = records.done(folder, config.num_fid_samples, output.unmerged(manifest), output.mark(manifest))
    mark = output.mark(manifest) if manifest else 0
    disk.check_room(folder, config.num_fid_samples, int((~done).sum()), config.image_size, with_png, mark)
    found = Found(identity, folder, manifest, done, how, size, vae, names)
    if not done.all():
        try_networks(config, group, found)  # networks that cannot be drawn from leave no folder, and a run as it is
    return found


def prepare(config: SamplingConfig, group: Group, with_png: bool, stack: ExitStack, options: Mapping) -> tuple[Task, Lock]:
    """Checks everything, claims the folder, and finds out what is to be done. The lock is held until `stack` closes.

    Args:
        options: for the manifest, those that are not in `config`.

    Raises:
        UserError: before anything is written, if something given cannot be used.
    """
    found = examine(config, group, with_png)
    identity, folder = found.identity, found.folder
    config = replace(config, labels=identity["labels"])  # without names
    try:
        make_folder(folder)
    except OSError as error:
        raise UserError(f"--sample-dir {config.sample_dir}: cannot create {folder} ({error.strerror})") from error
    try:
        held = stack.enter_context(Lock(folder, group.check))
        if identity["per_proc_batch_size"] == "auto":
            identity["per_proc_batch_size"] = find_batch_size(config, group, found)
        manifest, done = claim(folder, config, identity)
        check_names(folder, manifest, found.names)  # another run may have been here since
        weights = checkpoint.read(config.ckpt, config.weights_key).kind
        manifest["paths"] = {"ckpt": str(config.ckpt), "weights": weights, "vae": config.vae}
        if found.names:
            manifest["class_names"] = found.names.recorded()
        manifest["options"] = recorded(replace(config, weights_key=weights), identity, options)
        manifest["sessions"].append(describe_session(group, int(done.sum()), with_png))
        output.write_manifest(folder, manifest)
        forget_last_session(folder, manifest)
        with open_new(folder / RESERVE) as file:
            file.write(bytes(RESERVED))
        npz = open_npz(folder, config)
    except OSError as error:
        raise disk.explained(error, folder) from error
    say(f"{folder}: {done.sum():,} of {len(done):,} images are there")
    return replace(found, manifest=manifest).task(npz, len(manifest["sessions"]), held.token, done), held


def try_networks(config: SamplingConfig, group: Group, found: Found) -> Drawer:
    """A drawer with both networks loaded, not compiled, which notes nothing.

    Raises:
        UserError: if one of them cannot be drawn from.
    """
    eager, (input_size, channels) = replace(found.how, compile=False), found.size
    drawer = Drawer(config, group.device, eager, lambda: found.vae.folder, (channels, input_size), lambda **_: None)
    drawer.load()
    return drawer


def find_batch_size(config: SamplingConfig, group: Group, found: Found) -> int:
    """Images in a block: the most that fit, but so few that each rank of this session has one."""
    most = min(MOST[group.device.type], -(-config.num_fid_samples // group.world_size))
    images = try_networks(config, group, found).largest_batch(most, group.check)
    say(f"--per-proc-batch-size auto: {images}")
    return images


def check_options(config: SamplingConfig) -> None:
    """Raises UserError for what no files could make right; to be called before any are fetched."""
    config.check()
    if config.model is not None and (path := spec_of(config.model).path) not in SAMPLERS[config.sampler].solves:
        able = [name for name, sampler in SAMPLERS.items() if path in sampler.solves]
        raise UserError(
            f"--sampler {config.sampler}: does not solve what {config.model} was trained on; choose from {', '.join(able)}"
        )


def told(config: SamplingConfig, vae: Path) -> dict[str, str | int]:
    """Model, image size and number of classes, as the checkpoint says, whose latents the autoencoder in the folder `vae` decodes.

    Raises:
        UserError: if something else was given, or the rest of the configuration does not go with them.
    """
    whole = checkpoint.read(config.ckpt, config.weights_key)
    checkpoint.require_family(whole, config.ckpt, config.model)
    found = checkpoint.describe(whole.state, config.ckpt, checkpoint.family_in(whole, config.model))
    checkpoint.require_known(found, config.ckpt)
    factor = decoder_of(config.vae).factor(vae)
    size = found["input_size"] * factor
    if config.image_size not in (None, size):
        raise UserError(
            f"--image-size {config.image_size}: {config.ckpt} is of {size}, with {found['input_size']} latent pixels of which "
            f"--vae {config.vae} makes {factor} each; give --image-size {size}, or leave it out"
        )
    num_classes = config.num_classes or label_table.classes_of(whole)[0]
    own = {"model": found["model"], "image_size": size, "num_classes": num_classes}
    check_options(replace(config, **own))
    return own


def inspect(config: SamplingConfig, group: Group) -> tuple[dict, tuple[int, int], CodecFiles]:
    """What the run is, (size, channels) of its latents, and its autoencoder; files and options are held against each other."""
    found = checkpoint.read(config.ckpt, config.weights_key)
    checkpoint.require_family(found, config.ckpt, config.model)
    codec, asked = decoder_of(config.vae), ["vae", config.vae, config.cache_dir]
    vae = codec.inspect(Path(group.once_per_node(asked, lambda: str(codec.resolve(config.vae, config.cache_dir)))))
    if config.image_size % vae.factor:
        raise UserError(f"--image-size {config.image_size}: must be a multiple of {vae.factor}, the VAE's reduction")
    if config.cfg_scale != 1.0 and config.cfg_channels > (channels := vae.latent_channels):
        raise UserError(
            f"--cfg-channels {config.cfg_channels}: the VAE {config.vae} has {channels} latent channels; give --cfg-channels "
            f"{channels}, which guides all, or fewer"
        )
    wanted = checkpoint.describe(found.state, config.ckpt)["in_channels"]
    autoencoder.require_channels(vae.latent_channels, wanted, config.vae, config.ckpt)
    input_size, in_channels = config.image_size // vae.factor, vae.latent_channels
    shape = {"num_classes": config.num_classes, "input_size": input_size, "in_channels": in_channels}
    has_null = has_null_label(config, found)
    checkpoint.check(found.state, config.ckpt, config.model, **shape, has_null=has_null, factor=vae.factor)
    checkpoint.require_network(found.state, config.ckpt, config.network)
    tell_of_weights(config, found, has_null)
    config = replace(config, labels=classes.numbered(config.labels, class_names(config)))
    config.check()
    with group.allowing(TRYING_SECONDS):
        how = numerics.resolve(config, group.device)
    numerics.apply(how, config, group.device)
    identity = {
        **config.identity(),
        "checkpoint_sha256": checkpoint.sha256(config.ckpt),
        **({} if found.is_usual else {"weights_key": found.kind}),
        "vae_sha256": vae.sha256,
        "vae_config_sha256": vae.config_sha256,
        **vae.unlike_stable_diffusion(),
        "noise": NOISE_VERSION,
        **asdict(how),
        **({"device_type": group.device.type} if config.exact else {}),
    }
    return identity, (input_size, in_channels), vae


def has_null_label(config: SamplingConfig, found: checkpoint.Checkpoint) -> bool:
    """Whether the network of a run has a null label; without one it is drawn unguided.

    Raises:
        UserError: if the checkpoint has none and the run needs one, or it says so itself of what the options take for one.
    """
    checkpoint.describe(found.state, config.ckpt)  # or what it lacks is said
    unguided = config.cfg_scale == 1.0 and config.labels != "null"
    num_classes = config.num_classes or label_table.classes_of(found)[0]
    return label_table.has_null_label(found, config.ckpt, num_classes, unguided)


def is_raw_folder(found: checkpoint.Checkpoint) -> bool:
    """Whether the weights are of a folder beside which there is another with their EMA."""
    return any(map(candidates.is_averaged, found.folders))


def tell_of_weights(config: SamplingConfig, found: checkpoint.Checkpoint, has_null: bool) -> None:
    """Says which weights of a file with several are drawn, and what about them may not be meant."""
    if found.kind != checkpoint.PLAIN or found.beside:
        said = f"weights of {config.ckpt}: {found.weights}" + (f"; {found.beside}" if found.beside else "")
        is_raw = found.kind not in found.averages and (len(found.networks) > 1 or found.empty or is_raw_folder(found))
        warn(f"warning: {said}") if is_raw else say(said)
    for said in label_table.contradictions(found, config.ckpt, config.image_size):
        warn(f"warning: {config.ckpt} says of its training: {said}; see that it is the file that is meant")
    if not has_null and found.trained_classes is None and config.num_classes > 1:
        warn(
            f"warning: --num-classes {config.num_classes}: all rows of the label table are classes then, and none is the null "
            f"label's; if it was trained with one, give --num-classes {config.num_classes - 1}"
        )


def class_names(config: SamplingConfig) -> ClassNames | None:
    """What the classes of the run are called, if anybody knows, for a checkpoint that was read before."""
    return names_of_checkpoint(config.class_names, config.ckpt, checkpoint.read_class_to_idx(config.ckpt), config.num_classes)


def check_names(folder: Path, manifest: dict | None, names: ClassNames | None) -> None:
    """Raises UserError if a run was begun with other class names. Runs of before they were recorded take any, as do
    those whose names were only guessed."""
    there = manifest and manifest.get("class_names")
    if there and names and there["sha256"] != names.sha256 and there["source"] != GUESSED:
        raise UserError(
            f"{folder} belongs to a different configuration: class_names are from {there['source']} there and {names.source} "
            f"here, so {difference(there['names'], names.names)}; give them as they are there, or choose another "
            "--run-name or --sample-dir"
        )


def check_kind(folder: Path, own: str) -> None:
    """Raises UserError if a run of the other kind is in the folder, whose files would stand among those of a run of this one.

    Args:
        own: the file that says what a run of this kind is.
    """
    kinds = {MANIFEST: "that keeps its images", ONLINE: "of --evaluate-online, which keeps none"}
    for file, kind in kinds.items():
        if file != own and os.path.lexists(folder / file):
            raise UserError(f"{folder} belongs to a run {kind}, as its {file} shows; choose another --run-name")


def check_folder(folder: Path, manifest: dict | None, config: SamplingConfig, identity: dict) -> None:
    """Raises UserError if the folder belongs to another configuration, or cannot be written."""
    npz = archive.npz_path(folder)
    check_places(folder)
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"--sample-dir {config.sample_dir}: {folder} cannot be written")
    there = nearest(folder)
    if reason := unwritable(there):
        why = f"because {there} cannot be written ({reason})"
        raise UserError(f"--sample-dir {config.sample_dir}: cannot create {folder}, {why}")
    if manifest is None:
        if there := [path for path in (npz, archive.part_path(folder)) if path.exists()]:
            raise UserError(f"{there[0]} exists, but {folder} has no {MANIFEST}; move it away, or choose another --run-name")
        if png_path(folder, 0).exists() or (folder.is_dir() and any(folder.glob("*.png"))):
            raise UserError(f"{folder} holds images but no {MANIFEST}, so what they are is unknown; choose another folder")
    elif manifest["identity"] != identity:
        raise other_configuration(folder, manifest["identity"], identity, manifest.get("paths", {}).get("weights"))
    elif manifest["num_fid_samples"] > config.num_fid_samples:
        raise UserError(
            f"--num-fid-samples {config.num_fid_samples}: {folder} is a run of {manifest['num_fid_samples']}, which can grow "
            "but not shrink; choose another --run-name or --sample-dir"
        )


def check_records(folder: Path, manifest: dict) -> None:
    """Raises UserError if the records in the folder are of another run than its manifest."""
    if reason := output.mixed_up(folder, manifest):
        raise UserError(f"{reason}; put back the files of one run, or choose another --run-name or --sample-dir")


def check_places(folder: Path) -> None:
    """Raises UserError if there is a link, a folder or the like in the place of a file that a run writes, but for its images."""
    npz, inside = archive.npz_path(folder), (MANIFEST, ONLINE, ENDED, RESERVE, LOCK)
    beside = npz, archive.part_path(folder), npz.with_suffix(".json"), npz.with_suffix(".html")
    for path in (*beside, *(folder / name for name in inside), records.table_path(folder)):
        try:
            require_place(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; move it away, or choose another --run-name") from error
    if (parts := records.part_path(folder, 0, 0).parent).exists() and not parts.is_dir():
        raise UserError(f"{parts}: it is no folder; move it away, or choose another --run-name")


def other_configuration(folder: Path, old: dict, identity: dict, weights: str | None = None) -> UserError:
    """What to say if `folder` has the identity `old`, drawn from the weights of that name, and this is another."""
    fields = [name for name in sorted({*old, *identity}) if old.get(name) != identity.get(name)]
    said = ", ".join(
        f"{name} is {str(old.get(name))[:SHOWN]} there and {str(identity.get(name))[:SHOWN]} here" for name in fields
    )
    remedy = "give these options as they are there, or " if {*RESOLVED, "per_proc_batch_size"}.issuperset(fields) else ""
    if "weights_key" in fields and (there := old.get("weights_key") or weights):  # an identity names no usual weights
        said = said.replace(f"weights_key is {old.get('weights_key')} there", f"weights_key is {there} there").replace(
            f"{there} there and None here", f"{there} there and other weights are taken here"
        )
        remedy = f"give --weights-key {there}{' to go on with it' if len(fields) == 1 else ''}, or "
    remedy += "choose another --run-name or --sample-dir"
    return UserError(f"{folder} belongs to a different configuration: {said}; {remedy}")


def tell_of_siblings(folder: Path, identity: dict) -> None:
    """Says if the run was begun with other numerics: on another processor or GPU, `auto` means something else."""
    for sibling in folder.parent.glob(f"{glob.escape(folder.name[:-FINGERPRINT_LETTERS])}*/{MANIFEST}"):
        with suppress(UserError):
            manifest = output.read_manifest(sibling.parent)
            other = manifest["identity"]
            if not sibling.parent.name.endswith(manifest["fingerprint"][:FINGERPRINT_LETTERS]):  # it is named after "auto"
                other["per_proc_batch_size"] = "auto"
            differing = [name for name in identity if other.get(name) != identity[name]]
            if differing and set(RESOLVED).issuperset(differing):
                said = ", ".join(f"{name} {other.get(name)} (here {identity[name]})" for name in differing)
                say(f"note: {sibling.parent} is the same run with {said}; to continue that one, give its options")


def claim(folder: Path, config: SamplingConfig, identity: dict) -> tuple[dict, np.ndarray]:
    """The folder's manifest, new or continued, and which images are done. For who holds the lock."""
    check_kind(folder, MANIFEST)  # another run may have been here since
    manifest = output.read_manifest(folder) or output.new_manifest()
    if manifest["sessions"]:
        check_folder(folder, manifest, config, identity)  # another run may have been here since
        conclude(folder, manifest)
    manifest |= {"fingerprint": fingerprint(identity), "identity": identity, "num_fid_samples": config.num_fid_samples}
    check_records(folder, manifest)
    mark = output.mark(manifest)
    records.merge(folder, output.unmerged(manifest), config.num_fid_samples, mark)
    manifest["merged"] = len(manifest["sessions"])
    return manifest, records.done(folder, config.num_fid_samples, {}, mark)


def conclude(folder: Path, manifest: dict) -> None:
    """Takes into the manifest what the last session left: why it ended, and what happened in it."""
    last, number = manifest["sessions"][-1], len(manifest["sessions"])
    if number > manifest["merged"]:
        last["events"] = read_events(folder, number, last["world_size"])
    if "finished" not in last and "ended" not in last:
        last["ended"] = read_ended(folder) or {"kind": "lost", "message": "killed without a word"}


def forget_last_session(folder: Path, manifest: dict) -> None:
    """Removes what `conclude` has taken, when that is written."""
    (folder / ENDED).unlink(missing_ok=True)
    for number, session in enumerate(manifest["sessions"][:-1][-1:], start=len(manifest["sessions"]) - 1):
        remove_events(folder, number, session["world_size"])


def events_path(folder: Path, session: int, rank: int) -> Path:
    return records.part_path(folder, session, rank).with_suffix(".jsonl")


def read_events(folder: Path, session: int, ranks: int) -> list[dict]:
    """What the ranks of a session have noted."""
    events = []
    for rank in range(ranks):
        path = events_path(folder, session, rank)
        with suppress(FileNotFoundError):
            for line in read_text(path, EVENTS_BYTES, errors="replace").splitlines():
                try:
                    events.append(json.loads(line))
                except ValueError:  # cut off
                    continue
    return events[:EVENTS_KEPT]


def remove_events(folder: Path, session: int, ranks: int) -> None:
    for rank in range(ranks):
        events_path(folder, session, rank).unlink(missing_ok=True)


def open_npz(folder: Path, config: SamplingConfig) -> Path:
    """The npz as it is called now, long enough for all images: whole, or to be continued under another name."""
    whole, part = archive.npz_path(folder), archive.part_path(folder)
    if whole.exists():
        if whole.stat().st_size == archive.size(config.num_fid_samples, config.image_size):
            return whole
        os.replace(whole, part)
    with open(open_to_write(part, os.O_RDWR | os.O_CREAT), "r+b") as file:
        file.truncate(archive.slot(config.num_fid_samples, config.image_size))
    return part


def describe_session(group: Group, images_before: int, with_png: bool) -> dict:
    """What is recorded of where and when a run was worked on; none of it changes what is drawn."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "images_before": images_before,
        "world_size": group.world_size,
        "hosts": group.hosts(),
        "png": with_png,
        "device": torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "fiducial": about(),
    }


def cpu_name() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    try:
        names = (
            line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
        )
        return next(names, platform.machine())
    except OSError:
        return platform.machine()
