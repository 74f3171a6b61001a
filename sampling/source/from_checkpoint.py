"""From `--ckpt` and `--vae` to a source: what files and options come to, and whether they go together."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from fiducial import Group, UserError, say, warn
from fiducial.classes import ClassNames, names_of_checkpoint
from fiducial.classes import read as read_names
from fiducial.models.checkpoints import candidates, catalogue, checkpoint, label_table, shapes
from fiducial.models.decoders import autoencoder, rounding
from fiducial.models.decoders.table import Decoder, decoder_of
from fiducial.models.latent import LatentShape
from fiducial.models.networks.table import NETWORKS, is_guided_outside, spec_of
from fiducial.ranks.cores import share
from fiducial.sampling.identity import Identity
from fiducial.sampling.noise import NOISE_VERSION
from fiducial.sampling.options import class_names as classes
from fiducial.sampling.options.choices import INNER_HEAD
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source import numerics, wanted_files, weak
from fiducial.sampling.source.checking import Check
from fiducial.sampling.source.compilation import compiling
from fiducial.sampling.source.flow import Flow, check_flow
from fiducial.sampling.source.latent_diffusion import LatentDiffusion
from fiducial.sampling.source.networks import Networks
from fiducial.sampling.source.node_files import STATISTICS, NodeFiles, find_vae, output_of, statistics_of, told_by_checkpoint
from fiducial.sampling.source.numerics import RESOLVED, Numerics
from fiducial.sampling.source.protocol import ResolvedRun

TRYING_SECONDS = 300  # for the compiler to show that it works


def is_asked_for(_: SamplingConfig) -> bool:
    """Whether a configuration is of this source: it is if no other is named."""
    return True


def open_source(config: SamplingConfig, identity: Identity, facts: Mapping[str, object], group: Group) -> LatentDiffusion:
    """On every rank."""
    how = Numerics(**{name: identity.values[name] for name in RESOLVED})
    files = NodeFiles(config, identity, group, facts.get("latent_stats"))
    numbered = replace(config, labels=identity.labels, guidance_model=identity.values.get("guidance_model"))
    networks = Networks(numbered, group.device, how, LatentShape(**facts["latent"]), files.codec)
    return LatentDiffusion(networks, files.meet, partial(compiling, group), share(group), Check(group, identity.values))


def check_options(config: SamplingConfig, is_told: bool = True) -> None:
    """Raise UserError for what no files could make right; to be called before any are fetched.

    Args:
        is_told: nobody had to guess the model's family.
    """
    config = with_sampler(config)
    config.validate()
    if config.model is not None:
        check_own_guidance(config)
        check_flow(config, "" if is_told else shapes.if_another(config.model))


def check_own_guidance(config: SamplingConfig) -> None:
    """Raise UserError for guidance of two predictions where a network has its own."""
    kind = spec_of(config.model).guidance
    if config.guidance_by == INNER_HEAD and not spec_of(config.model).has_inner:
        able = ", ".join(f"a {spec.name}" for spec in NETWORKS.values() if spec.has_inner)
        raise UserError(f"--guidance-by {INNER_HEAD}: {config.model} has no inner head, as {able} has; leave it out")
    if kind == "trained" and config.cfg_scale != 1.0:
        raise UserError(
            f"--cfg-scale {config.cfg_scale}: {config.model} was trained to predict what is guided, and is not guided once more; "
            "give --cfg-scale 1.0"
        )
    if kind == "told":
        for name, usual in (("guidance_ends", "closed"), ("cfg_schedule", "constant"), ("guidance_ckpt", None)):
            if (value := getattr(config, name)) != usual:
                said = f"--{name.replace('_', '-')} {value}"
                raise UserError(f"{said}: {config.model} is told scale and interval, and guides itself by them; leave it out")


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
    if group.is_main:
        wanted_files.require_fetchable(config)
        if catalogue.place_of(config.latent_stats) is None:
            statistics_of(config)
    if config.ckpt is None:
        published = catalogue.choose(config.model, config.image_size, config.num_classes)
        catalogue.check_codec(*published.shape, config.vae)
        if published.is_bare and config.weights_key not in (None, checkpoint.PLAIN):
            raise UserError(f"--weights-key {config.weights_key}: published weights are alone in their file; leave it out")
    elif group.is_main and catalogue.is_path(config.ckpt):
        found = checkpoint.read(config.ckpt, config.weights_key)
        checkpoint.require_family(found, config.ckpt, config.model)
        config = replace(config, **trained(config, found))
        check_options(config, config.model is not None or found.says_family)
        given = {"model": config.model, "num_classes": config.num_classes}
        given = {name: value for name, value in given.items() if value is not None}
        shapes.check_shape(found.state, config.ckpt, given, has_null_label(config, found))
    guidance = config.guidance_ckpt
    if group.is_main and guidance is not None and catalogue.is_path(guidance) and config.model is not None:
        weak.model_of(config)
    if group.is_main and config.class_names:
        read_names(config.class_names, f"--class-names {config.class_names}")


def fetch(config: SamplingConfig, group: Group) -> SamplingConfig:
    """The configuration with local paths, and with what the checkpoint says where nothing was given; it, the VAE and the like
    are downloaded if need be, by rank 0 and then by the first rank of each node that does not see them."""

    def find() -> str:
        return str(catalogue.find(config.ckpt, config.model, config.image_size, config.num_classes, config.cache_dir))

    check_given(config, group)
    given, config = config.ckpt, wanted_files.found_beside(config, group)
    asked = ["vae-files", config.vae, config.cache_dir]
    folder = Path(group.once_per_node(asked, lambda: str(find_vae(config)), main_first=True))
    wanted = ["checkpoint", config.ckpt, config.model, config.image_size, config.num_classes, config.cache_dir]
    config = replace(config, ckpt=Path(group.once_per_node(wanted, find, main_first=True)))
    if config.untold():
        config = replace(config, **group.once(lambda: told_by_files(config, folder)))
    config = with_sampler(config)
    config = replace(config, **group.once(lambda: trained(config, checkpoint.read(config.ckpt, config.weights_key))))
    unlike = catalogue.unlike_published(given, config.model, config.image_size, config.num_classes, config.cache_dir)
    if unlike and group.is_main:
        warn(f"warning: {unlike}")
    return config


def require_here(config: SamplingConfig) -> None:
    """Say of published files of a run whether they are here; UserError if one of them is not, or options are mistaken."""
    check_options(config)
    if config.ckpt is None:
        catalogue.check_codec(config.model, config.image_size, config.num_classes, config.vae)
    wanted_files.require_here(config)


def told_by_files(config: SamplingConfig, vae: Path) -> dict[str, str | int]:
    """Model, image size and number of classes, as the checkpoint says, whose latents the codec in the folder `vae` decodes.

    Raises:
        UserError: if something else was given, or the rest of the configuration does not go with them.
    """
    whole = checkpoint.read(config.ckpt, config.weights_key)
    checkpoint.require_family(whole, config.ckpt, config.model)
    found = shapes.describe(whole.state, config.ckpt, checkpoint.family_in(whole, config.model))
    shapes.require_known(found, config.ckpt)
    factor = decoder_of(config.vae).open(vae).factor
    size = found["latent"].size * factor
    if config.image_size is not None and shapes.takes_any_size(found["model"]):
        size = config.image_size
    if config.image_size not in (None, size):
        raise UserError(
            f"--image-size {config.image_size}: {config.ckpt} is of {size}, with {found['latent'].size} latent pixels of which "
            f"--vae {config.vae} makes {factor} each; give --image-size {size}, or leave it out"
        )
    num_classes = config.num_classes or label_table.classes_of(whole)[0]
    own = {"model": found["model"], "image_size": size, "num_classes": num_classes}
    told = trained(replace(config, **own), whole)
    check_options(replace(config, **own, **told), is_told=config.model is not None or whole.says_family)
    return own


def trained(config: SamplingConfig, found: checkpoint.Checkpoint) -> dict[str, str]:
    """The path and the prediction with which a file says that its network was trained, where these are not its family's own.

    Raises:
        UserError: if another was given.
    """
    for name, value in found.trained.items():
        if (given := getattr(config, name)) not in (None, value):
            raise UserError(f"--{name} {given}: {config.ckpt} says of its training {value}; leave --{name} out")
    return NETWORKS[checkpoint.family_in(found, config.model)].unusual(found.trained)


def resolve(config: SamplingConfig, group: Group) -> ResolvedRun:
    """The resolved run, once files and options are known to go together."""
    found = checkpoint.read(config.ckpt, config.weights_key)
    checkpoint.require_family(found, config.ckpt, config.model)
    codec = decoder_of(config.vae).open(find_vae(config))
    of_codec, latent = codec.identity(), latent_of(config, found, codec)
    if spec_of(config.model).guidance != "outside":  # then no channels are guided here, and their number is no choice
        config = replace(config, cfg_channels=latent.channels)
    held = None if config.latent_stats else told_by_checkpoint(found)
    if own := statistics_of(config, held):
        own.check(latent, f"--latent-stats {config.latent_stats}" if config.latent_stats else f"{config.ckpt}")
        of_codec |= {STATISTICS: own.sha256}
    elif getattr(codec, "needs_statistics", False):
        raise UserError(
            f"--vae {config.vae}: the file does not say by what latents are normalised; give --latent-stats, scale=1 where by "
            "nothing"
        )
    if (output := output_of(config, codec)) not in (None, rounding.IMAGENET):  # as of runs older than the choice
        of_codec |= {"vae_output": output}
    has_null = has_null_label(config, found)
    shape = {"num_classes": config.num_classes, "latent": latent}
    shapes.check(found.state, config.ckpt, config.model, **shape, has_null=has_null, factor=codec.factor)
    shapes.require_network(found.state, config.ckpt, config.network)
    if config.guidance_by == INNER_HEAD:
        shapes.require_inner(found.state, config.ckpt, f"--guidance-by {INNER_HEAD}")
    tell_of_weights(config, found, has_null)
    tell_of_guidance(config, latent)
    names = names_of(config, found)
    config = replace(config, labels=classes.numbered(config.labels, names))
    config.validate()
    with group.allowing(TRYING_SECONDS):
        how = numerics.choices(config, group.device)
    not_here = [one for one in numerics.ways(config, group.device) if one not in how]
    fixed = {
        **config.identity(),
        **Flow.of(config).recorded(config),
        "checkpoint_sha256": checkpoint.sha256(config.ckpt),
        **({} if found.is_usual else {"weights_key": found.kind}),
        **weak.recorded(config, latent),
        **of_codec,
        "noise": NOISE_VERSION,
        **({"device_type": group.device.type} if config.exact else {}),
    }
    paths = {"ckpt": str(config.ckpt), "weights": found.kind, "vae": config.vae}
    settled = {"weights_key": found.kind}
    times = Flow.of(config).times(config)
    facts = {"latent": asdict(latent), **({"latent_stats": held} if held else {}), **({"grid": times} if times else {})}
    identity, *others = (Identity(fixed | asdict(one)) for one in how)
    uncompiled = tuple(Identity(fixed | asdict(one)) for one in not_here)
    asked = None if found.is_first else found.kind
    return ResolvedRun(config, identity, names, facts, paths, settled, asked, tuple(others), uncompiled)


def latent_of(config: SamplingConfig, found: checkpoint.Checkpoint, codec: Decoder) -> LatentShape:
    """The latents that the codec makes such images of.

    Raises:
        UserError: if it makes none of that size, or the network or the guidance is for others.
    """
    if (only := getattr(codec, "only_size", config.image_size)) != config.image_size:
        raise UserError(f"--image-size {config.image_size}: --vae {config.vae} decodes images of {only} alone")
    if config.image_size % codec.factor:
        raise UserError(f"--image-size {config.image_size}: must be a multiple of {codec.factor}, the VAE's reduction")
    if is_guided_outside(config.model, config.cfg_scale) and config.cfg_channels > (channels := codec.latent_channels):
        raise UserError(
            f"--cfg-channels {config.cfg_channels}: the VAE {config.vae} has {channels} latent channels; give --cfg-channels "
            f"{channels}, which guides all, or fewer"
        )
    autoencoder.require_channels(codec.latent_channels, found.latent.channels, config.vae, config.ckpt)
    return LatentShape(codec.latent_channels, config.image_size // codec.factor)


def has_null_label(config: SamplingConfig, found: checkpoint.Checkpoint) -> bool:
    """Whether the network of a run has a null label; without one it is drawn unguided.

    Raises:
        UserError: if the checkpoint has none and the run needs one, or it says so itself of what the options take for one.
    """
    family = checkpoint.family_in(found, config.model)
    shapes.describe(found.state, config.ckpt, family)  # or what it lacks is said
    is_unguided = not config.is_guided_by_null or NETWORKS[family].guidance != "outside"
    unguided = is_unguided and config.labels != "null"
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


def tell_of_guidance(config: SamplingConfig, latent: LatentShape) -> None:
    """Say if a run guides other channels than its family's published numbers do, where those are not DiT's and SiT's three."""
    spec = spec_of(config.model)
    usual = min(spec.guided or latent.channels, latent.channels)
    if spec.layout and is_guided_outside(config.model, config.cfg_scale) and config.cfg_channels != usual:
        which = "all" if usual == latent.channels else f"the first {usual} of"
        warn(
            f"warning: --cfg-channels {config.cfg_channels}: {spec.name}'s published numbers guide {which} {latent.channels}; "
            f"give --cfg-channels {usual} for them"
        )


def names_of(config: SamplingConfig, found: checkpoint.Checkpoint) -> ClassNames | None:
    """Names of the run's classes; None where nobody knows them."""
    return names_of_checkpoint(config.class_names, config.ckpt, found.class_to_idx, config.num_classes)
