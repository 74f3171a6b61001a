"""The cost of a pickle, found out by following it without building anything.

The few functions that a pickle of weights may call still let a small file fill the memory or never end: a string encoded a
thousand times, a tuple of tuples of tuples that is hashed. Everything here is a sum over the instructions, each seen once.
"""

import pickletools
from dataclasses import dataclass

MOST_BYTES = 1 << 25  # of a pickle: a training checkpoint of XL has about 1 MB
MOST_INSTRUCTIONS = 2_000_000  # which take some seconds
MOST_WORK = 1 << 27  # about the bytes that its calls may make
UNIT = 64  # about the bytes of an object, at least
GROWTH = 4  # what a call can make of its arguments: text as UTF-32
ENDLESS = 1 << 40  # at which sums stop
DEEPEST = 200  # one in another; what is deeper cannot be hashed without overflowing the stack
CONSTANTS = (
    *("NONE", "NEWTRUE", "NEWFALSE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "EMPTY_SET"),
    *("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"),
)
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MANY = {"APPENDS": 1, "SETITEMS": 2}  # and how many parts an item has
ONE = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}


class TooMuch(ValueError):
    """A pickle whose reading would take more time or memory than any checkpoint's."""


@dataclass(slots=True)
class Made:
    """The cost of what an instruction would put on the stack: about the bytes of all that is reached from it, each as often as
    it is."""

    size: int = UNIT
    depth: int = 0
    is_part: bool = False  # of something else, whose size was summed up then

    def take_in(self, parts: list["Made"]) -> None:
        """Make these a part of it."""
        for part in parts:
            part.is_part = True
            self.size += part.size
            self.depth = max(self.depth, part.depth + 1)
        self.size = min(self.size, ENDLESS)
        if self.depth > DEEPEST:
            raise TooMuch(f"its pickle is nested more than {DEEPEST} deep")


def followed(data: bytes) -> set[str]:
    """The globals that a pickle names, as `module.name`, when it is known that it can be read.

    Raises:
        TooMuch: if it costs too much.
        ValueError, IndexError, KeyError: if it is damaged, or of a protocol that torch does not read without trust.
    """
    run = _Run()
    for number, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        if number >= MOST_INSTRUCTIONS:
            raise TooMuch(f"its pickle has more than {MOST_INSTRUCTIONS:,} instructions")
        run.step(instruction.name, argument)
    return run.names


class _Run:
    """A stack of sizes in the place of values."""

    def __init__(self):
        self.names: set[str] = set()
        self._stack: list[Made] = []
        self._marked: list[list[Made]] = []
        self._memo: dict[int, Made] = {}
        self._work, self._protocol = 0, 0

    def step(self, name: str, argument: object) -> None:
        stack = self._stack
        if name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in CONSTANTS:
            stack.append(Made())
        elif name in ("BINUNICODE", "SHORT_BINSTRING"):
            stack.append(Made(UNIT + len(argument)))
        elif name in TUPLES:
            self._put_in(Made(), self._taken(TUPLES[name]))
        elif name == "MARK":
            self._marked.append(stack)
            self._stack = []
        elif name == "TUPLE":
            self._unmark()
            self._put_in(Made(), stack)
        elif name in MANY:
            self._unmark()
            self._extend(stack, MANY[name])
        elif name in ONE:
            self._extend(self._taken(ONE[name]), 2 if name == "SETITEM" else 1, is_call=name == "BUILD")
        elif name in ("REDUCE", "NEWOBJ"):
            called, arguments = self._taken(2)
            self._spend(arguments.size)
            self._put_in(Made(GROWTH * arguments.size), [called, arguments])
        elif name == "GLOBAL":
            self.names.add(".".join(argument.split(" ")))
            stack.append(Made())
        elif name == "BINPERSID":
            self._taken(1)
            stack.append(Made())
        elif name == "PROTO":
            self._protocol = argument
        elif name != "STOP":
            raise ValueError(f"its pickle, of protocol {self._protocol}, has a {name}, which torch does not read without trust")

    def _unmark(self) -> None:
        self._stack = self._marked.pop()

    def _taken(self, count: int) -> list[Made]:
        taken = self._stack[-count:]
        if len(taken) < count:
            raise IndexError("its pickle takes more from its stack than is there")
        del self._stack[-count:]
        return taken

    def _put_in(self, whole: Made, parts: list[Made]) -> None:
        whole.take_in(parts)
        self._stack.append(whole)

    def _extend(self, parts: list[Made], pieces: int, is_call: bool = False) -> None:
        """Put parts into what is on top; of items of two pieces the first is a key, and is hashed."""
        into = self._stack[-1]
        if into.is_part:
            raise TooMuch("something in its pickle contains itself")
        hashed = parts if is_call else parts[::2] if pieces == 2 else []
        self._spend(sum(part.size for part in hashed))
        into.take_in(parts)

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > MOST_WORK:
            raise TooMuch(f"its pickle would become more than {MOST_WORK:,} bytes")
