"""Which networks a file of weights holds, and which of them is drawn from: the average (EMA), whatever it is called.

A training leaves its weights as a dictionary of tensors, under names of its own choice (`ema`, `model_ema`, `state_dict`), in
further dictionaries (`{"module": ...}`), with prefixes (`module.`, `ema_denoiser.`), or as a list in the order of parameters.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from distributed import UserError, quoted
from models.diffusers_form import EMBEDDERS, ENDS, IN_BLOCKS, POSITIONS, State, depth_of

PLAIN = "plain"  # weights that have no name in their file
USUAL = ("ema", "model", "state_dict")  # the names that are looked for first
WRAPPERS = ("module", "_orig_mod")  # prefixes of DistributedDataParallel and torch.compile, which name nothing
MARK = "x_embedder.proj.weight"  # only a DiT has it
AVERAGED = re.compile(r"(?<![a-z])(ema|swa)(?![a-z])|shadow|averag|polyak")
FLAT_MARK = MARK.replace(".", "")
NUMBERED = "\0"  # before the place of a tensor in a list
DEEPEST = 5  # dictionaries in dictionaries
MOST_NETWORKS = 16
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

    @property
    def rank(self) -> int:
        """The lower, the rather it is drawn from; up to 2 it is an average."""
        parts = (*self.where, *self.prefix)
        if self.key == "ema":
            return 0
        if parts and is_averaged(parts[-1]):
            return 1
        if any(map(is_averaged, parts)):
            return 2
        return 3 + USUAL.index(self.key) if self.key in USUAL else 3 + len(USUAL)

    @property
    def is_average(self) -> bool:
        return self.rank <= 2


@dataclass(frozen=True)
class Found:
    """What is in a file. Where no average among its networks can be drawn from, those that are there and the reason, and the
    names of those that are empty."""

    networks: list[Candidate]
    unusable: dict[str, str]
    empty: tuple[str, ...]

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
            return key, found.state
        first, *others = sorted(self.networks, key=lambda one: one.rank)
        if others and others[0].rank == first.rank:
            raise UserError(f"{path} holds several networks, {names}; say by --weights-key which one to draw from")
        if self.unusable and not first.is_average:
            name, reason = next(iter(self.unusable.items()))
            raise UserError(
                f"{path}: nothing can be drawn from its {name}, for {reason}; give --weights-key {first.key} for the raw weights"
            )
        return first.key, first.state


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
        split = [Candidate(where, *part) for part in _split(values)]
        networks += (own := [one for one in split if len(one.state) == len(values) or not lacking(one.state) - {POSITIONS}])
        reached.update(where[:1])
        if flattened := [Candidate(where, *part) for part in _flattened(values)]:
            averages += flattened
        elif not own and any(map(is_averaged, where)) and (where == ("ema",) or len(values) > FEW):
            averages.append(Candidate(where, (), values))
    raws = [one for one in _keyed(networks) if not one.is_average and not lacking(one.state)]
    raw = raws[0] if len(raws) == 1 else next((one for one in raws if one.key in USUAL), None)
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
    waiting, entries = [((), content)], 0
    for where, outer in waiting:
        entries += len(outer)
        if entries > MOST_ENTRIES:
            raise UserError(f"{path}: its dictionaries have more than {MOST_ENTRIES:,} entries, which no checkpoint of a DiT has")
        if tensors := {name: value for name, value in outer.items() if isinstance(value, Tensor)}:
            yield where, tensors if all(isinstance(name, str) for name in outer) else _numbered(tensors.values())
        for name, value in outer.items():
            if not isinstance(name, str) or len(name) > LONGEST_NAME:
                continue
            if isinstance(value, dict) and len(where) < DEEPEST:
                waiting.append(((*where, name), value))
            elif isinstance(value, list | tuple) and value and all(isinstance(one, Tensor) for one in value):
                yield (*where, name), _numbered(value)


def _numbered(values: Iterable[Tensor]) -> State:
    return {f"{NUMBERED}{place}": value for place, value in enumerate(values)}


def _split(tensors: State) -> Iterator[tuple[tuple[str, ...], State]]:
    """The networks in one dictionary, each with the prefix of its keys, which is taken off."""
    prefixes = [key.removesuffix(MARK) for key in tensors if key == MARK or key.endswith("." + MARK)]
    for prefix in prefixes if len(prefixes) <= MOST_NETWORKS else ():
        others = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        own = {key: value for key, value in tensors.items() if key.startswith(prefix) and not key.startswith(others)}
        parts = tuple(part for part in prefix.split(".") if part and part not in WRAPPERS)
        yield parts, {key.removeprefix(prefix): value for key, value in own.items()}


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
    """What keys a DiT of as many blocks has, and these weights do not."""
    blocks = (f"blocks.{number}.{part}" for number in range(depth_of(state)) for part in IN_BLOCKS)
    modules = (*EMBEDDERS, *ENDS, *blocks)
    kinds = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")} | {POSITIONS}
    return kinds - {"y_embedder.embedding_table.bias"} - state.keys()


def _keyed(networks: list[Candidate]) -> list[Candidate]:
    """The same, named by the outermost dictionary that they are in, or in full where that holds several."""

    def key(one: Candidate) -> str:
        is_alone = sum(other.where[:1] == one.where[:1] for other in networks) == 1
        return ".".join(one.where[:1] if is_alone else (*one.where, *one.prefix)) or PLAIN

    return [replace(one, key=key(one)) for one in networks]


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
