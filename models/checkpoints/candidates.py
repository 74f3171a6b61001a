"""Which networks a file of weights holds, and which of them is drawn from: the average (EMA), whatever it is called.

A training leaves its weights as a dictionary of tensors, under names of its own choice (`ema`, `model_ema`, `state_dict`), in
further dictionaries (`{"module": ...}`), with prefixes (`module.`, `ema_denoiser.`), or as a list in the order of parameters.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from torch import Tensor

from fiducial import UserError, quoted
from fiducial.models.checkpoints.diffusers_form import EMBEDDERS, ENDS, IN_BLOCKS, POSITIONS, State, depth_of
from fiducial.models.networks.table import NETWORKS, told_by

PLAIN = "plain"  # weights that have no name in their file
USUAL = ("ema", "model", "state_dict")  # the names that are looked for first
WRAPPERS = ("module", "_orig_mod")  # prefixes of DistributedDataParallel and torch.compile, which name nothing
MARK = "x_embedder.proj.weight"  # only a DiT has it, or one of its kind
MARKS = tuple({MARK: None} | {spec.layout.mark: None for spec in NETWORKS.values() if spec.layout})
PREFERRED = ("model_ema1",)  # of several averages, the one of a family's published numbers: JiT's
# `schema`, `cinema` and `exp_avg`, which is Adam's, are none.
AVERAGED = re.compile(
    r"(?<!sch)(?<!cin)emas?(?![a-z])|(?<![a-z])ema(?=model|net|param|state|weight)|(?<![a-z])swa(?![a-z])"
    r"|(?<![a-z])(?<!exp_)avg(?=model|net|param|state|weight|(?![a-z]))|shadow|averag|polyak"
)
MOMENTS = re.compile(r"exp_avg|momentum")  # an optimiser's, which may have the names of the weights
COUNT = "n_averaged"  # beside the weights of torch's AveragedModel
ONLINE = ("online", "online_model")  # what an average is of, where both are in one module
INSIDE = re.compile(r"(?<![^.])(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")  # of any module in a network
FLAT_MARK = MARK.replace(".", "")
NUMBERED = "\0"  # before the place of a tensor in a list
DEEPEST = 5  # dictionaries in dictionaries
MOST_NETWORKS = 16
MOST_IN_LIST = 100  # dictionaries
FEW = 10  # tensors, of which there is no network
MOST_ENTRIES = 1_000_000  # of dictionaries, each counted as often as it is referred to
LONGEST_NAME = 100  # characters of a name that is looked at


@dataclass(frozen=True)
class Candidate:
    """A network's weights. `where` are the dictionaries that lead to it, `prefix` what its keys had in common there."""

    where: tuple[str, ...]
    prefix: tuple[str, ...]
    state: State = field(repr=False)
    key: str = PLAIN  # as --weights-key names it
    counted: bool = False  # an AveragedModel's
    online: bool = False  # what the average beside it is of

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.where, *self.prefix)

    @property
    def rank(self) -> int:
        """The lower, the rather it is drawn from; up to 2 it is an average."""
        parts = self.parts
        if self.online:
            return 3 + len(USUAL)
        if self.key == "ema":
            return 0
        if parts and is_averaged(parts[-1]):
            return 1
        if self.counted or any(map(is_averaged, parts)):
            return 2
        return 3 + USUAL.index(self.key) if self.key in USUAL else 3 + len(USUAL)

    @property
    def is_average(self) -> bool:
        return self.rank <= 2


@dataclass(frozen=True)
class Found:
    """Candidates in a file. Where no average among its networks can be drawn from, those that are there and the reason, and the
    names of those that are empty."""

    networks: list[Candidate]
    unusable: dict[str, str]
    empty: tuple[str, ...]

    def in_order(self) -> list[Candidate]:
        """The networks, that which is drawn from by itself before all others."""
        return sorted(self.networks, key=lambda one: (one.rank, one.key not in PREFERRED))

    def choose(self, key: str | None, path: Path) -> tuple[str, State]:
        """Name and weights of the network that `--weights-key` names, or else of the one to be drawn from.

        Raises:
            UserError: if there is none of that name, or it is not clear which.
        """
        names = ", ".join(one.key for one in self.networks)
        if key is not None:
            if (found := next((one for one in self.networks if one.key == key), None)) is None:
                only = "one network, without a name; leave it out" if names == PLAIN else names
                reason = f"; {self.unusable[key]}" if key in self.unusable else ""
                raise UserError(f"--weights-key {quoted(key)}: {path} holds {only}{reason}")
            return key, self._whole(found, path)
        first, *others = self.in_order()
        if first.key not in PREFERRED and others and others[0].rank == first.rank:
            raise UserError(f"{path} holds several networks, {names}; say by --weights-key which one to draw from")
        if self.unusable and not first.is_average:
            name, reason = next(iter(self.unusable.items()))
            raise UserError(
                f"{path}: nothing can be drawn from its {name}, for {reason}; give --weights-key {first.key} for the raw weights"
            )
        return first.key, self._whole(first, path)

    def _whole(self, chosen: Candidate, path: Path) -> State:
        """The weights of one of the networks.

        Raises:
            UserError: if they lack what another network of the same width has.
        """
        for other in self.networks:
            if width_of(other.state) == width_of(chosen.state) is not None and not lacking(other.state):
                missing = sorted(wanted(other.state) - chosen.state.keys())
                if missing:
                    raise UserError(
                        f"{path}: of the keys that {other.key} has, its {chosen.key} lacks {len(missing)}, as "
                        f"{quoted(missing[0])}, so it was not saved whole; give --weights-key {other.key}, or another checkpoint"
                    )
        if lacking(chosen.state) == {POSITIONS}:
            which = "it" if chosen.key == PLAIN else f"its {chosen.key}"
            raise UserError(
                f"{path} is not a DiT checkpoint: {which} lacks {POSITIONS}, which is not trained and so is left out of a "
                "dictionary of trained parameters; give a checkpoint that also holds the raw weights, from which it is taken"
            )
        return chosen.state


def is_averaged(name: str) -> bool:
    """Whether a name says that it is of an average of weights."""
    return AVERAGED.search(re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()) is not None


def search(content: dict, path: Path) -> Found:
    """All networks of DiT's kind in what the file `path` holds.

    Raises:
        UserError: if it holds the same dictionaries more often than can be looked at.
    """
    networks: list[Candidate] = []
    averages: list[Candidate] = []  # whose tensors have yet to be named, as the raw weights' are
    reached: set[str] = set()
    for where, values in _walk(content, path):
        if any(map(MOMENTS.search, where)):
            continue
        split = [Candidate(where, *part, counted=is_counted) for *part, is_counted in _split(values)]
        networks += (own := [one for one in split if len(one.state) == len(values) or not lacking(one.state) - {POSITIONS}])
        reached.update(where[:1])
        if flattened := [Candidate(where, *part) for part in _flattened(values)]:
            averages += flattened
        elif not own and any(map(is_averaged, where)) and (where == ("ema",) or len(values) > FEW):
            averages.append(Candidate(where, (), values))
    raws = [one for one in _keyed(networks) if not one.is_average and not lacking(one.state)]
    raw = raws[0] if len(raws) == 1 else next((one for one in raws if one.key in USUAL), None)
    networks = [_with_positions(one, raw) for one in networks]
    unusable = {}
    for one in averages:
        try:
            networks.append(replace(one, state=_named(one.state, raw)))
        except ValueError as error:
            unusable[(*one.where, *one.prefix)[0]] = str(error)
    networks = _keyed(networks[:MOST_NETWORKS])
    hollow = (name for name, value in content.items() if value is None or isinstance(value, dict | list | tuple))
    empty = tuple(name for name in hollow if isinstance(name, str) and is_averaged(name) and name not in reached)
    is_there = any(one.is_average for one in networks)
    return Found(networks, {} if is_there else unusable, () if is_there else empty)


def _walk(content: dict, path: Path) -> Iterator[tuple[tuple[str, ...], State]]:
    """Dictionaries and lists of tensors, with the names that lead to them; what is in a list is named by its place."""
    waiting, entries, lists = [((), content)], 0, set()
    for where, outer in waiting:
        entries += len(outer)
        if entries > MOST_ENTRIES:
            raise UserError(f"{path}: its dictionaries have more than {MOST_ENTRIES:,} entries, which no checkpoint of a DiT has")
        if tensors := {name: value for name, value in outer.items() if isinstance(value, Tensor)}:
            yield where, _unwrapped(tensors) if all(isinstance(name, str) for name in outer) else _numbered(tensors.values())
        for name, value in outer.items():
            name = str(name) if isinstance(name, float) else name  # a decay, by which some call an average
            if not isinstance(name, str) or len(name) > LONGEST_NAME:
                continue
            if isinstance(value, dict) and len(where) < DEEPEST:
                waiting.append(((*where, name), value))
            elif isinstance(value, list | tuple) and value and all(isinstance(one, Tensor) for one in value):
                yield (*where, name), _numbered(value)
            elif isinstance(value, list | tuple) and id(value) not in lists and len(where) < DEEPEST:
                lists.add(id(value))
                inside = ((str(place), one) for place, one in enumerate(value) if isinstance(one, dict))
                waiting.append(((*where, name), dict(islice(inside, MOST_IN_LIST))))


def _unwrapped(tensors: State) -> State:
    """The same without what sharding, checkpointing of activations and compiling put into the names of the modules inside."""
    bare = {INSIDE.sub("", key): value for key, value in tensors.items()}
    return bare if len(bare) == len(tensors) else tensors


def _numbered(values: Iterable[Tensor]) -> State:
    return {f"{NUMBERED}{place}": value for place, value in enumerate(values)}


def _split(tensors: State) -> Iterator[tuple[tuple[str, ...], State, bool]]:
    """The networks in one dictionary, each with the prefix of its keys, which is taken off, and if it is an AveragedModel's."""
    marked = ((key, mark) for key in tensors for mark in MARKS if key == mark or key.endswith("." + mark))
    prefixes = [key.removesuffix(mark) for key, mark in marked]
    for prefix in prefixes if len(prefixes) <= MOST_NETWORKS else ():
        others = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        own = {key: value for key, value in tensors.items() if key.startswith(prefix) and not key.startswith(others)}
        parts = tuple(part for part in prefix.split(".") if part and part not in WRAPPERS)
        is_counted = prefix.endswith("module.") and prefix.removesuffix("module.") + COUNT in tensors
        state = {key.removeprefix(prefix): value for key, value in own.items()}
        told = told_by(state)
        yield parts, told.layout.renamed(state) if told else state, is_counted


def _flattened(tensors: State) -> Iterator[tuple[tuple[str, ...], State]]:
    """Averages that are buffers, in whose names there can be no dots, with the prefix of their keys."""
    for key in tensors:
        if key.endswith(FLAT_MARK):
            prefix = key.removesuffix(FLAT_MARK)
            yield (
                tuple(filter(None, prefix.split("."))),
                {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)},
            )
            return


def lacking(state: State) -> set[str]:
    """The keys that a DiT of as many blocks has, and these weights do not."""
    return wanted(state) - state.keys()


def width_of(state: State) -> tuple[int, ...] | None:
    """The shape of the weights by which a network is found; None where there are none."""
    return next((tuple(state[mark].shape) for mark in MARKS if mark in state), None)


def wanted(state: State) -> set[str]:
    """The keys of a DiT of as many blocks, or of what names tell the weights to be."""
    told = told_by(state)
    if told and not told.is_alike:
        return told.layout.keys(state)
    blocks = (f"blocks.{number}.{part}" for number in range(depth_of(state)) for part in IN_BLOCKS)
    modules = (*EMBEDDERS, *ENDS, *blocks)
    kinds = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")} | {POSITIONS}
    return kinds - {"y_embedder.embedding_table.bias"}


def _keyed(networks: list[Candidate]) -> list[Candidate]:
    """The same, named by the outermost dictionary that they are in, or in full where that holds several; a `model` with an
    average at its side, and what is called online, are what the average is of."""

    def key(one: Candidate) -> str:
        is_alone = sum(other.where[:1] == one.where[:1] for other in networks) == 1
        return ".".join(one.where[:1] if is_alone else one.parts) or PLAIN

    averages = {one.parts[:-1] for one in networks if one.parts and is_averaged(one.parts[-1])}

    def is_online(one: Candidate) -> bool:
        *outer, last = one.parts or ("",)
        return last in ONLINE or (last == "model" and len(outer) > 0 and tuple(outer) in averages)

    return [replace(one, key=key(one), online=is_online(one)) for one in networks]


def _with_positions(one: Candidate, raw: Candidate | None) -> Candidate:
    """An average with the position embedding of the raw weights where it has none, as that is not trained."""
    if raw is None or not one.is_average or lacking(one.state) != {POSITIONS} or width_of(one.state) != width_of(raw.state):
        return one
    return replace(one, state={POSITIONS: raw.state[POSITIONS]} | one.state)


def _named(values: State, raw: Candidate | None) -> State:
    """An average under the names of the raw weights, with their position embedding where it has none, as that is not trained.

    What has no names is in order of the parameters, in which torch also writes a state dict.

    Raises:
        ValueError: with the reason, if they do not fit.
    """
    what, is_list = f"its {len(values):,} tensors", all(key.startswith(NUMBERED) for key in values)
    if not is_list and FLAT_MARK not in values:
        raise ValueError(f"{what} are not a DiT checkpoint's")
    if raw is None:
        raise ValueError(f"{what} have no names, and there are no raw weights beside them that could give them theirs")
    if not is_list:
        flat = {key.replace(".", ""): key for key in raw.state}
        state = {flat[name]: value for name, value in values.items() if name in flat}
        if raw.state.keys() - state.keys() <= {POSITIONS}:
            return {POSITIONS: raw.state[POSITIONS]} | state
    elif list(raw.state) == sorted(raw.state):
        raise ValueError(f"{what} have no names, and {raw.key} beside them is in alphabetical order, not in that of parameters")
    for keys in (list(raw.state), [key for key in raw.state if key != POSITIONS]) if is_list else ():
        if [raw.state[key].shape for key in keys] == [value.shape for value in values.values()]:
            return {POSITIONS: raw.state[POSITIONS]} | dict(zip(keys, values.values(), strict=True))
    raise ValueError(f"{what} do not match the {len(raw.state):,} of {raw.key}, which would give them names")
