"""DiT weights from files nobody has to trust: official `.pt`, training checkpoints (`model, ema, opt, args`), safetensors,
and folders as diffusers writes them.

Pickles are read with `weights_only=True`, and everything is memory-mapped: a check costs no more than the header.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fiducial import UserError, decode_json, file_sha256, no_file, open_regular, quoted, read_bytes
from fiducial.models.checkpoints import candidates, hub
from fiducial.models.checkpoints.candidates import PLAIN
from fiducial.models.checkpoints.diffusers_form import CLASSES, State, to_official
from fiducial.models.checkpoints.hub import CONFIG_FILE, INDEX_FILE, JSON_BYTES, WEIGHTS_FILES
from fiducial.models.checkpoints.other_files import what_else
from fiducial.models.checkpoints.said import Said, number, options_of
from fiducial.models.checkpoints.said import read as read_said
from fiducial.models.checkpoints.shapes import describe, learns_sigma, without_weights
from fiducial.models.checkpoints.unpickling import require_stored, unpickle
from fiducial.models.latent import LatentShape, LatentStatistics
from fiducial.models.networks import repa
from fiducial.models.networks.dit import DiT
from fiducial.models.networks.parts import Transformer
from fiducial.models.networks.table import NETWORKS, USUAL, family_of, models, told_by

STEPS = ("train_steps", "steps", "step", "global_step")
LARGEST_HEADER = 1 << 22  # bytes of a safetensors file's; XL's has 60 kB
CLASS_TO_IDX = "class_to_idx"  # torchvision's name for {"name": index}


def read_safetensors(path: Path) -> State:
    """The tensors of a safetensors file, memory-mapped.

    Raises:
        UserError: if the file is not whole, or lists more tensors than any network has.
    """
    try:
        with open_regular(path) as file:
            header = int.from_bytes(file.read(8), "little")
        if LARGEST_HEADER < header < path.stat().st_size:
            raise UserError(f"{path}: its header has {header:,} bytes, and that of no DiT has more than {LARGEST_HEADER:,}")
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not iterable in older versions)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error})") from error


@dataclass(frozen=True)
class Files:
    """Where a checkpoint's weights are on disk."""

    weights: tuple[Path, ...]  # several, if they are sharded
    config: Path | None = None  # of a diffusers folder
    index: Path | None = None  # which key is in which shard


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint: the weights under official names, memory-mapped, and what was saved beside them."""

    path: Path
    state: State
    kind: str  # what these weights are called in their file; `plain` if they have no name
    form: str
    family: str  # of the network, of NETWORKS, or one of these with what cannot be drawn
    step: int | None = None
    trained_classes: int | None = None  # as the file says, where its label table does not belie it
    said: Said = field(default_factory=Said)
    says_family: bool = False  # or else it is DiT because most are
    networks: tuple[str, ...] = ()  # all that `--weights-key` can name
    averages: tuple[str, ...] = ()  # those of them that are an EMA, by their names
    empty: tuple[str, ...] = ()  # EMAs that are there by name alone
    folder: str = ""  # the name of the folder that these are in, where there is another of an EMA, or of raw weights, beside it
    folders: tuple[str, ...] = ()  # the names of those
    is_usual: bool = True  # the weights that a run takes whose identity names none
    is_first: bool = True  # the weights that are taken by themselves
    unused: tuple[str, ...] = ()  # beginnings of names of tensors that are left out, because only training needs them
    statistics: LatentStatistics | None = None  # of its latents, where it holds them, as REPA-E's do
    trained: Mapping[str, str] = field(default_factory=dict)  # path and prediction, as the file says
    class_to_idx: object | None = None  # the class mapping that it carries, unchecked; in safetensors' metadata, as JSON

    @property
    def latent(self) -> LatentShape:
        """The latents that its network takes; UserError if it is none of a DiT's kind."""
        return describe(self.state, self.path)["latent"]

    def load(self, model: str, num_classes: int, device: torch.device, network: str = "official") -> DiT | Transformer:
        """The network of weights that were checked (see `shapes.check`), copied to `device` as float32, in evaluation mode.

        Args:
            num_classes: the label table has a row for each, and one more if there is a null label.
            network: of `dit.ARITHMETICS`: whose arithmetic.
        """
        dit = without_weights(self.state, model, num_classes, self.latent, learns_sigma(self.state), network)
        dit.to_empty(device=device).load_state_dict(self.state)
        return dit.eval().requires_grad_(False)

    @property
    def weights(self) -> str:
        """Which weights these are, in words."""
        if self.folder:
            return f"{self.folder}, {'an EMA' if candidates.is_averaged(self.folder) else 'not an EMA'}"
        if self.kind in self.averages:
            return self.kind if self.kind == "ema" else f"{self.kind}, an EMA"
        if self.averages or self.kind == "model":
            return f"{self.kind}, not an EMA"
        return f"{'the only ones' if self.kind == PLAIN else self.kind}, which may be an EMA or not"

    @property
    def beside(self) -> str:
        """Other weights to draw from, in words; empty if there are none."""
        others = [name + " (an EMA)" * (name in self.averages) for name in self.networks if name != self.kind]
        said = [f"beside it: {', '.join(others)} (--weights-key)"] if others else []
        if self.folders:
            named = ", ".join(name + " (an EMA)" * candidates.is_averaged(name) for name in self.folders)
            said.append(f"beside it: {named}, for which give that folder as --ckpt")
        return "; ".join([*said, *(f"{name} is empty" for name in self.empty)])


def folders_beside(folder: Path) -> tuple[str, ...]:
    """The names of the folders with the EMA of the weights in this one, or of what this is the EMA of, as `transformer_ema`."""
    own = folder.resolve()
    try:
        names = sorted(other.name for other in own.parent.iterdir() if other != own and (other / CONFIG_FILE).is_file())
    except OSError:
        return ()
    pairs = ((own.name, name) if candidates.is_averaged(name) else (name, own.name) for name in names)
    return tuple(
        name
        for name, (raw, average) in zip(names, pairs, strict=True)
        if raw in average and candidates.is_averaged(average) and not candidates.is_averaged(raw)
    )


def find(path: Path) -> Files:
    """The files of a checkpoint: a file, a folder of a DiTTransformer2DModel, or that of a DiTPipeline with such a one inside.

    Raises:
        UserError: if there is none.
    """
    if path.is_file():
        return Files((path,))
    if not path.is_dir():
        raise UserError(f"{path}: {no_file(path, 'no such checkpoint file or folder')}")
    folder = inner if (inner := path / "transformer").is_dir() else path
    config, index = folder / CONFIG_FILE, folder / INDEX_FILE
    if not config.is_file():
        lacks = hub.lacking(path, str(config.relative_to(path)))
        raise UserError(f"{path}: not a folder of a {CLASSES[0]} or DiTPipeline, {lacks}")
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return Files((folder / name,), config)
    if not index.is_file():
        there = (folder / name for name in (*WEIGHTS_FILES, INDEX_FILE) if (folder / name).exists())
        wanted = next(there, folder / WEIGHTS_FILES[0])
        raise UserError(f"{path}: {hub.lacking(path, str(wanted.relative_to(path)))}")
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{path}: it has no {quoted(name)}, which {INDEX_FILE} names")
    return Files(tuple(folder / name for name in names), config, index)


def _weight_map(index: Path) -> dict[str, str]:
    """File by key, from the index of a sharded folder."""
    found = read_json(index).get("weight_map")
    if not (isinstance(found, dict) and found and all(isinstance(name, str) for name in found.values())):
        raise UserError(f"{index} is not an index of shards: it has no weight_map of names of files")
    return found


def read_json(path: Path) -> dict:
    """Raise UserError if the file holds anything but a JSON object."""
    try:
        content = decode_json(read_bytes(path, JSON_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not whole JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def sha256(path: Path) -> str:
    """SHA-256 of a checkpoint's weights; of shards, that of their hashes in a row, in the order of their names."""
    hashes = [_sha256_of(_stamp(file)) for file in find(path).weights]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@lru_cache(maxsize=64)
def _sha256_of(stamp: tuple) -> str:
    return file_sha256(Path(stamp[0]))


def _stamp(path: Path) -> tuple:
    """A key that tells a file from another, or from itself when it was changed."""
    found = path.stat()
    return str(path.absolute()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


_opened: dict[tuple, Checkpoint] = {}  # the last of this process, until `forget`


def forget() -> None:
    """Let go of the checkpoint that was read last, whose file is mapped until nobody else has it."""
    _opened.clear()


def read(path: Path, weights_key: str | None = None) -> Checkpoint:
    """The content of a checkpoint of any form, opened once while its files are as they were.

    Args:
        weights_key: which weights to take where a file holds several, as `candidates.Candidate.key`; None: the EMA, if any.

    Raises:
        UserError: if there is no such file, or it is damaged, or it holds anything but weights, or none that are called so.
    """
    files = find(path)
    folders = folders_beside(files.config.parent) if files.config else ()
    stamps = [_stamp(file) for file in (*files.weights, files.config, files.index) if file]
    key = (str(path), weights_key, folders, *stamps)
    if key not in _opened:
        found = _read_folder(path, files, folders, weights_key) if files.config else _read_file(path, weights_key)
        _opened.clear()
        _opened[key] = found
    return _opened[key]


def _read_folder(path: Path, files: Files, folders: tuple[str, ...], weights_key: str | None) -> Checkpoint:
    if weights_key not in (None, PLAIN):
        remedy = "leave it out"
        if weights_key in (*folders, files.config.parent.name):
            remedy = f"give {files.config.parent.resolve().parent / weights_key} as --ckpt instead"
        raise UserError(f"--weights-key {quoted(weights_key)}: {path} is a folder, which holds one network; {remedy}")
    state: State = {}
    for file in files.weights:
        part = _read_file(file).state
        if shared := state.keys() & part.keys():
            raise UserError(f"{path}: {quoted(min(shared))} is in more than one of its shards")
        state |= part
    if files.index and (wrong := state.keys() ^ _weight_map(files.index).keys()):
        raise UserError(f"{path}: {quoted(min(wrong))} is only in its shards or only in {files.index.name}")
    form = f"diffusers folder, {len(files.weights)} shards" if files.index else "diffusers folder"
    state = to_official(state, read_json(files.config), path)
    own = files.config.resolve().parent.name if folders else ""
    return Checkpoint(path, state, PLAIN, form, "DiT", says_family=True, folder=own, folders=folders)


def _read_file(path: Path, weights_key: str | None = None) -> Checkpoint:
    is_safetensors = path.suffix == ".safetensors"
    if not is_safetensors and (what := what_else(path)):
        raise UserError(f"{path} is not whole in torch's zip format: it is {what}")
    if not is_safetensors and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not whole in torch's zip format; if it is older, re-save it with torch.save")
    content = read_safetensors(path) if is_safetensors else unpickle(path)
    found = candidates.search(content if isinstance(content, dict) else {}, path)
    beside = _metadata(path) if is_safetensors else content
    mapping = _mapping(content, path)
    said = read_said(beside, mapping, models())
    usual = next((name for name in candidates.USUAL if isinstance(content, dict) and isinstance(content.get(name), dict)), PLAIN)
    if found.networks:
        kind, state = found.choose(weights_key, path)
    else:
        kind, state = usual, _unwrapped(content if usual == PLAIN else content[usual], path)
    require_stored(state, path)
    step = next((content[name] for name in STEPS if name in content), None)
    table = state.get("y_embedder.embedding_table.weight")
    told = [(name, value) for name, value in options_of(beside) if isinstance(value, str)]
    family = _family(state, told)
    is_told, statistics = told_by(state) is not None, repa.statistics(state)
    state, unused = _without_unused(state)
    return Checkpoint(
        path,
        state,
        kind,
        "safetensors" if is_safetensors else "state dict" if kind == PLAIN else "training checkpoint",
        family,
        step=number(step),
        trained_classes=said.classes(None if table is None or not table.dim() else len(table)),
        said=said,
        says_family=is_told or "args" in content,
        networks=tuple(one.key for one in found.networks),
        averages=tuple(one.key for one in found.networks if one.is_average),
        empty=found.empty,
        is_usual=kind == usual,
        is_first=not found.networks or kind == found.in_order()[0].key,
        unused=unused,
        statistics=statistics,
        trained=NETWORKS[family].told(told) if family in NETWORKS else {},
        class_to_idx=mapping,
    )


def _unwrapped(state: object, path: Path) -> State:
    """A state dict that is no DiT's, without the prefixes that DistributedDataParallel and torch.compile give to all keys.

    Raises:
        UserError: if it is none.
    """
    if not (isinstance(state, dict) and state and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())):
        raise UserError(f"{path} holds no state dict: expected tensors by name, or a training checkpoint with `ema` or `model`")
    while prefix := next((f"{name}." for name in candidates.WRAPPERS if all(key.startswith(f"{name}.") for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _family(state: State, said: list[tuple[str, str]]) -> str:
    """Whose kind of network this is, as far as names and arguments of its training tell: SiT's weights alone look as DiT's do."""
    if told := told_by(state):
        return told.recognise(said) or told.name
    return next((family for spec in reversed(NETWORKS.values()) if (family := spec.recognise(said))), USUAL)


def _without_unused(state: State) -> tuple[State, tuple[str, ...]]:
    """The weights without those that only training needs, and the beginnings of their names."""
    told = told_by(state)
    beginnings = told.layout.unused if told else ()
    found = tuple(name for name in beginnings if any(key.startswith(name) for key in state))
    return {key: value for key, value in state.items() if not key.startswith(found)} if found else state, found


def family_in(found: Checkpoint, model: str | None) -> str:
    """The family as which a checkpoint is drawn, of `NETWORKS`: that of the model which was asked for, else its own."""
    return family_of(model) if model else found.family


def require_family(found: Checkpoint, path: Path, model: str | None, option: str = "--model") -> None:
    """Raise UserError if a checkpoint is known to be of a network that cannot be drawn, or of another family than `model`, which
    `option` says."""
    if found.family not in NETWORKS:
        raise UserError(f"{path} is a {found.family}, which no sampler here takes")
    wanted = family_in(found, model)
    if wanted != found.family and (found.family != USUAL or found.says_family):
        own, other = NETWORKS[found.family].predicts, NETWORKS[wanted].predicts
        unlike = f"predicts {own} and not {other}" if own != other else "is fed another time or has other names"
        raise UserError(
            f"{path} is a training checkpoint of {found.family}'s kind, which {unlike} as a {wanted}; leave {option} out, or "
            f"give a {found.family}'s"
        )


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _mapping(content: object, path: Path) -> object | None:
    """The class mapping of a file that holds `content`, at its top or among its `args`, or of safetensors' metadata, as JSON."""
    if path.suffix == ".safetensors":
        return _metadata(path).get(CLASS_TO_IDX)
    if isinstance(content, dict) and CLASS_TO_IDX in content:
        return content[CLASS_TO_IDX]
    return next((value for name, value in options_of(content) if name == CLASS_TO_IDX), None)
