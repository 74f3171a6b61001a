"""The images of a DiT under DDPM, decoded by an autoencoder: what its files and options come to, and drawing on a node.

Rank 0 checks that the files and the options go together; every node checks that its files are those that rank 0 has read.
"""

import json
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from fiducial import Group, UserError, say, warn
from fiducial.classes import ClassNames, names_of_checkpoint
from fiducial.classes import read as read_names
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.models import probe
from fiducial.models.checkpoints import candidates, catalogue, checkpoint, label_table
from fiducial.models.decoders import autoencoder
from fiducial.models.decoders.table import decoder_of
from fiducial.models.networks.table import spec_of
from fiducial.sampling.identity import Identity
from fiducial.sampling.noise import NOISE_VERSION
from fiducial.sampling.options import class_names as classes
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source import numerics
from fiducial.sampling.source.latent_diffusion import LatentDiffusion
from fiducial.sampling.source.numerics import RESOLVED, Numerics
from fiducial.sampling.source.protocol import ResolvedRun
from fiducial.sampling.store.task import Task

TRYING_SECONDS = 300  # for the compiler to show that it works
COMPILING_SECONDS = 1800  # at most, on a busy machine; it cannot say how far it has come


class DiTSource:
    """A DiT under a sampler with its autoencoder, on this rank."""

    def __init__(self, config: SamplingConfig, task: Task, group: Group, note: Callable[..., object]):
        self._how, self._config, self._device = numerics_of(task.identity), config, group.device
        self._codec, latent = NodeCodec(config, task, group), (task.facts["in_channels"], task.facts["input_size"])
        compiling = partial(group.allowing, COMPILING_SECONDS)
        self.drawer = LatentDiffusion(config, group.device, self._how, self._codec, latent, note, compiling)
        self.ready, self.loading = self._how.precision, "weights and compiling" if self._how.compile else "weights"

    def load(self) -> None:
        self._codec.meet()
        self.drawer.load()

    def told(self, group: Group) -> dict | None:
        return told_by_probing(self.drawer, group)

    def blocks(self, starts: Iterable[int], count: int, check: Callable[[], object]) -> Iterator[tuple[int, np.ndarray]]:
        return self.drawer.blocks(starts, count, check)

    def lines(self, told: dict | None, evaluations: int) -> list[str]:
        config, how = self._config, self._how
        eta = f", eta {config.eta}" if config.eta else ""
        of_block = f": {evaluations:,} evaluations of the network for a block" if evaluations else ""
        low, high = config.guidance_interval
        compiled, exact = "compiled" if how.compile else "not compiled", ", exact" if config.exact else ""
        lines = [
            f"sampler   {config.sampler}, {config.num_sampling_steps} steps{eta}{of_block}",
            f"guidance  cfg-scale {config.cfg_scale} on {config.cfg_channels} channels, interval {low:g},{high:g}",
            f"numerics  {how.precision}, {compiled}, attention {how.attention}, on {self._device.type}{exact}",
        ]
        return [*lines, f"probe     {probe.in_words(told)}"] if evaluations else lines


def is_asked_for(_: SamplingConfig) -> bool:
    """Whether a configuration is of this source: it is if no other is named."""
    return True


def open_source(config: SamplingConfig, task: Task, group: Group, note: Callable[..., object]) -> DiTSource:
    """On every rank; on all but rank 0, torch's switches are set as there."""
    if not group.is_main:
        numerics.apply(numerics_of(task.identity), config, group.device)
    return DiTSource(config, task, group, note)


def numerics_of(identity: Identity) -> Numerics:
    """Precision, compilation and kernels that a run was resolved to."""
    return Numerics(**{name: identity.values[name] for name in RESOLVED})


class NodeCodec:
    """The codec's folder on this node, once the node's files are known to be those that rank 0 has seen."""

    def __init__(self, config: SamplingConfig, task: Task, group: Group):
        self._config, self._task, self._group = config, task, group
        self._folder: Path | None = None

    def meet(self) -> None:
        """For all ranks that have blocks to draw: the first of a node, which has some if any has, checks the node's files."""
        self._folder = Path(vae_of_node(self._config, self._group, self._task))

    def __call__(self) -> Path:
        return self._folder or find_weights(self._config, self._task)


def told_by_probing(drawer: LatentDiffusion, group: Group) -> dict | None:
    """Wait for all ranks to have loaded their networks. On rank 0, what these made of pure noise as an entry of the
    manifest, the least of each number; None elsewhere, and where none was asked."""
    response = drawer.networks.response.recorded() if drawer.networks.response else None
    group.publish(f"probe/{group.rank}", json.dumps(response))
    group.wait()
    if not group.is_main:
        return None
    told = [json.loads(group.receive(f"probe/{rank}")) for rank in range(group.world_size)]
    if not (asked := [one for one in told if one]):
        return None
    worst = {name: min(one[name] for one in asked) for name in asked[0]}
    if said := next(filter(None, map(probe.doubt_of, asked)), None):
        warn(f"warning: {drawer.config.ckpt}: {said}")
    return worst


def check_options(config: SamplingConfig) -> None:
    """Raise UserError for what no files could make right; to be called before any are fetched."""
    config = with_sampler(config)
    config.check()
    if config.model is not None and (path := spec_of(config.model).path) not in SAMPLERS[config.sampler].solves:
        able = [name for name, sampler in SAMPLERS.items() if path in sampler.solves]
        raise UserError(
            f"--sampler {config.sampler}: does not solve what {config.model} was trained on; choose from {', '.join(able)}"
        )


def with_sampler(config: SamplingConfig) -> SamplingConfig:
    """The configuration with its network's own sampler, if that network is known and no sampler was asked for."""
    if config.sampler is not None or config.model is None:
        return config
    return replace(config, sampler=spec_of(config.model).sampler)


def check_given(config: SamplingConfig, group: Group) -> None:
    """Check what can be told before anything is downloaded.

    Raises:
        UserError: for options that no files make right, without `--ckpt` where none is published, and on rank 0 for a file
            or folder that is no checkpoint of that model and so many classes.
    """
    check_options(config)
    if config.ckpt is None:
        catalogue.choose(config.model, config.image_size, config.num_classes)
        if config.weights_key not in (None, checkpoint.PLAIN):
            raise UserError(f"--weights-key {config.weights_key}: published weights are alone in their file; leave it out")
    elif group.is_main and catalogue.is_path(config.ckpt):
        found = checkpoint.read(config.ckpt, config.weights_key)
        checkpoint.require_family(found, config.ckpt, config.model)
        given = {"model": config.model, "num_classes": config.num_classes}
        given = {name: value for name, value in given.items() if value is not None}
        checkpoint.check_shape(found.state, config.ckpt, given, has_null_label(config, found))
    if group.is_main and config.class_names:
        read_names(config.class_names, f"--class-names {config.class_names}")


def fetch(config: SamplingConfig, group: Group) -> SamplingConfig:
    """The configuration with a local path as `ckpt`, and with what that says where nothing was given; it and the VAE are
    downloaded if need be, by rank 0 and then by the first rank of each node that does not see them."""

    def find() -> str:
        return str(catalogue.find(config.ckpt, config.model, config.image_size, config.num_classes, config.cache_dir))

    check_given(config, group)
    given = config.ckpt
    folder = Path(
        group.once_per_node(["vae-files", config.vae, config.cache_dir], lambda: str(find_vae(config)), main_first=True)
    )
    wanted = ["checkpoint", config.ckpt, config.model, config.image_size, config.num_classes, config.cache_dir]
    config = replace(config, ckpt=Path(group.once_per_node(wanted, find, main_first=True)))
    if config.untold():
        config = replace(config, **group.once(lambda: told_by_files(config, folder)))
    config = with_sampler(config)
    unlike = catalogue.unlike_published(given, config.model, config.image_size, config.num_classes, config.cache_dir)
    if unlike and group.is_main:
        warn(f"warning: {unlike}")
    return config


def told_by_files(config: SamplingConfig, vae: Path) -> dict[str, str | int]:
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


def resolve(config: SamplingConfig, group: Group) -> ResolvedRun:
    """The resolved run, once files and options are known to go together."""
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
    names = names_of(config, found)
    config = replace(config, labels=classes.numbered(config.labels, names))
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
    facts = {"input_size": input_size, "in_channels": in_channels}
    paths = {"ckpt": str(config.ckpt), "weights": found.kind, "vae": config.vae}
    return ResolvedRun(config, Identity(identity), names, facts, paths, replace(config, weights_key=found.kind))


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
    """Say which weights of a file with several are drawn, and what about them may not be meant."""
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


def names_of(config: SamplingConfig, found: checkpoint.Checkpoint) -> ClassNames | None:
    """Names of the run's classes; None where nobody knows them."""
    return names_of_checkpoint(config.class_names, config.ckpt, found.class_to_idx, config.num_classes)


def try_out(run: ResolvedRun, group: Group) -> LatentDiffusion:
    """A drawer with both networks loaded, not compiled, which notes nothing.

    Raises:
        UserError: if one of them cannot be drawn from.
    """
    eager, config = replace(numerics_of(run.identity), compile=False), run.config
    latent = run.facts["in_channels"], run.facts["input_size"]
    drawer = LatentDiffusion(config, group.device, eager, lambda: find_vae(config), latent, lambda **_: None)
    drawer.load()
    return drawer


def find_vae(config: SamplingConfig) -> Path:
    """The VAE's folder on this node, fetched if it has to be."""
    return decoder_of(config.vae).resolve(config.vae, config.cache_dir)


def vae_of_node(config: SamplingConfig, group: Group, task: Task) -> str:
    """The VAE's folder, found by the first rank of each node, which makes sure of the node's files."""
    find = find_vae if group.is_main else partial(find_weights, task=task)
    return group.once_per_node(["vae", config.vae, config.cache_dir], lambda: str(find(config)))


def find_weights(config: SamplingConfig, task: Task) -> Path:
    """The VAE's folder on this node, after making sure that the node's files are those that rank 0 checked.

    Raises:
        UserError: if one differs.
    """
    folder = find_vae(config)
    for path, found, expected in (
        (
            config.ckpt,
            checkpoint.sha256(config.ckpt) if config.ckpt.exists() else None,
            task.identity.values["checkpoint_sha256"],
        ),
        (folder, decoder_of(config.vae).sha256(folder), task.identity.values["vae_sha256"]),
    ):
        if found != expected:
            raise UserError(f"{path} on {socket.gethostname()} is missing or another file than on the first node")
    return folder
