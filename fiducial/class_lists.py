"""Lists of classes as people have them in text files: their lines understood, or refused. No torch."""

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fiducial.console import quoted

# Lines of lists that are known: a synset, perhaps an index, perhaps names; an index and a synset, perhaps names; or an index and
# a name.
OF_SYNSETS = re.compile(r"(?P<synset>n[0-9]{8})(?:[\s,]+(?P<index>[0-9]{1,9}))?(?:[\s,]+(?P<name>.+))?")
OF_BOTH = re.compile(r"(?P<index>[0-9]{1,9})[\s:,]+(?P<synset>n[0-9]{8})(?:[\s,]+(?P<name>.+))?")
OF_INDICES = re.compile(r"(?P<quote>[\"']?)(?P<index>[0-9]{1,9})(?P=quote)(?P<between>[\s:,;|=]+)(?P<name>.+)")
LAST_INDEX = re.compile(r"(?P<quote>[\"']?)(?P<index>[0-9]{1,9})(?P=quote)$")
PARTING = re.compile(r"[:,;|=\t]")  # what stands between columns, and seldom in a name
COMMENT = re.compile(r"#.+")
PRINTED = re.compile(r"[\[{]\s*(?:[\"']|[0-9]{1,9}\s*:)")  # how dictionaries and lists begin
# Words of the line above a table, and those of them that are no class where one stands alone.
HEADER = re.compile(
    r"(?:class|label|category)?[_-]?(?:index|idx|ids?|number|names?|labels?)|class(?:es)?|category|categories|synsets?|wnids?"
    r"|human|readable|description|text|folder|target|words"
)
HEADER_ALONE = re.compile(r"(?:class|label|category)?[_-]?names?|labels?|class(?:es)?|category|categories|synsets?|wnids?")
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\s{0,9}=\s{0,9}(?=[\[{])")  # before a dictionary or list, as in a program
LARGEST_PRINTED = 1 << 20  # characters of a dictionary of Python's


def without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, of which Python would keep only the last of two equal keys."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"{quoted(key)} stands there twice")
        seen.add(key)
    return dict(pairs)


def parse(text: str) -> object:
    """The class list in a text file: a dictionary or list that is printed there, or the entries of its lines in order of index,
    each a name or a pair of synset and name.

    Raises:
        ValueError: if lines are not all of one kind, or their indices are not 0, 1, 2 and so on.
    """
    lines = [line.strip() for line in text.rstrip().splitlines()]
    comments = [number for number, line in enumerate(lines, 1) if COMMENT.fullmatch(line)]
    if not 0 < len(comments) < len(lines):
        return _from_lines(lines)[0]
    rest = [line for line in lines if line and not COMMENT.fullmatch(line)]
    content, is_plain = _from_lines(rest)
    if is_plain:
        first = quoted(lines[comments[0] - 1])
        raise ValueError(f"line {comments[0]}, {first}, is a comment and no class, or others lack what it begins with; remove it")
    return content


def _from_lines(lines: Sequence[str]) -> tuple[object, bool]:
    """The content, and whether it is nothing but a name a line."""
    text = "\n".join(lines)
    whole = ASSIGNMENT.sub("", text, count=1) if ASSIGNMENT.match(text) else text
    if whole[:1] + whole[-1:] in ("{}", "[]") and (printed := _printed(whole)) is not None:
        return printed, False
    if PRINTED.match(whole):
        raise ValueError("begins like a dictionary or list of Python's, but is none; give it alone, or a name a line")
    if _has_header(lines):
        lines = lines[1:]
    if len(lines) > 1 and all(line.endswith(",") for line in lines[:-1]):  # of a dictionary or list without its brackets
        lines = [line.removesuffix(",") for line in lines]
    if all(len(line) > 2 and line[0] == line[-1] and line[0] in "\"'" and line[0] not in line[1:-1] for line in lines):
        lines = [_unquoted(line) for line in lines]
    for form in (OF_SYNSETS, OF_BOTH):
        found = [match.groupdict() for line in lines if (match := form.fullmatch(line))]
        if not lines or len(found) < len(lines):
            continue
        indices = [one["index"] and int(one["index"]) for one in found]
        if form is OF_BOTH:
            in_order([(index, None) for index in indices], first=min(1, *indices))
        if None not in indices:
            found = [one for _, one in sorted(zip(indices, found, strict=True), key=_first)]
        elif (last := _column(_index_behind, [one["name"] or "" for one in found])).is_index:
            found = [
                one | {"name": name} for _, one, name in sorted(zip(last.indices, found, last.names, strict=True), key=_first)
            ]
        rows = [(one["synset"], one["name"] and _unquoted(one["name"])) for one in found]
        return [[synset, name] if synset and name else name or synset for synset, name in rows], False
    if (names := _by_index(lines)) is not None:
        return names, False
    return list(lines), True


@dataclass(frozen=True)
class Column:
    """Numbers at one end of all lines, and what the lines are without them; empty where not all have one."""

    indices: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    is_parted: bool = False  # by more than spaces, which names have too

    @property
    def is_index(self) -> bool:
        """Whether they number the lines, from 0 or 1 on; numbers within names, without which these are the same, do not."""
        return bool(self.indices) and set(self.indices) in (set(self._from(0)), set(self._from(1))) and self._are_different

    @property
    def order(self) -> list[int]:
        return [index - min(self.indices) for index in self.indices]

    @property
    def _are_different(self) -> bool:
        return self.is_parted or len(set(self.names)) == len(self.names)

    def _from(self, first: int) -> range:
        return range(first, first + len(self.indices))

    def sorted(self) -> list[str]:
        return [_unquoted(name) for _, name in sorted(zip(self.indices, self.names, strict=True), key=_first)]


def _first(entry: tuple) -> int:
    return entry[0]


def _index_before(line: str) -> tuple[int, str, str] | None:
    """The index that a line begins with, what parts it from the name, and the name."""
    return (int(match["index"]), match["between"], match["name"]) if (match := OF_INDICES.fullmatch(line)) else None


def _index_behind(line: str) -> tuple[int, str, str] | None:
    """The same for one that a line ends with."""
    if not (match := LAST_INDEX.search(line)):
        return None
    name = (head := line[: match.start()]).rstrip(" \t:,;|=")
    return (int(match["index"]), head[len(name) :], name) if name and name != head else None


def _column(split: Callable[[str], tuple[int, str, str] | None], lines: Sequence[str]) -> Column:
    found = []
    for line in lines:
        if (parts := split(line)) is None:
            return Column()
        found.append(parts)
    is_parted = all(PARTING.search(between) for _, between, _ in found)
    return Column(tuple(index for index, *_ in found), tuple(name for *_, name in found), is_parted)


def _by_index(lines: Sequence[str]) -> list[str] | None:
    """The names of lines with an index before or behind each, in its order; None if they have none.

    Raises:
        ValueError: if the indices are not 0, 1, 2 and so on, stand in the middle or in some lines only, or there are two of them.
    """
    before, after = _column(_index_before, lines), _column(_index_behind, lines)
    if before.is_index and after.is_index and after.is_parted:
        if before.order != after.order:
            raise ValueError("its lines have a number before and one behind the name, each of which may be the index; remove one")
        return _column(_index_behind, before.sorted()).sorted()
    if before.is_index:
        return before.sorted()
    if after.is_index and (after.is_parted or len(lines) > 1):
        return after.sorted()
    for column in (before, after):
        if column.is_parted and len(lines) > 1:
            in_order([(index, None) for index in column.indices], first=min(1, *column.indices))
    rows = [[cell.strip() for cell in re.split(r"[,;|\t]", line)] for line in lines]
    for cells in zip(*rows, strict=False) if len(lines) > 1 else ():
        numbers = [int(cell) for cell in cells if re.fullmatch("[0-9]{1,9}", cell)]
        if len(numbers) == len(lines) and Column(tuple(numbers), is_parted=True).is_index and max(map(len, rows)) > 1:
            raise ValueError("its lines have their index between others; give the index and the name alone, in two columns")
    _require_all_or_few(lines)
    return None


def _require_all_or_few(lines: Sequence[str]) -> None:
    """Raise ValueError if half of the lines have an index, parted from the name, and one has none."""
    lacking = [
        (number, line)
        for number, line in enumerate(lines, 1)
        if not any((parts := split(line)) and PARTING.search(parts[1]) for split in (_index_before, _index_behind))
    ]
    if len(lines) > 2 and 0 < len(lacking) <= len(lines) / 2:
        number, line = lacking[0]
        raise ValueError(f"line {number}, {quoted(line)}, has no index, as others have; remove it if it is a header")


def _has_header(lines: Sequence[str]) -> bool:
    """Whether the first line says what stands in those below it, which are of a form that is known.

    Raises:
        ValueError: if it does and they are not, or all others are numbered and it is not.
    """
    first, rest = (lines[0] if lines else ""), lines[1:]
    words = [word for word in re.split(r"[\s,;:|\"']+", first.lower()) if word]
    says = bool(rest) and bool(words) and all(HEADER.fullmatch(word) for word in words)
    known = (OF_SYNSETS, OF_BOTH, OF_INDICES)
    if says and len(words) > 1 and (any(all(form.fullmatch(line) for line in rest) for form in known) or _by_index(rest)):
        return True
    if says and (re.search(r"[,;|\t]", first) or (len(words) == 1 and HEADER_ALONE.fullmatch(words[0]))):
        raise ValueError(
            f"line 1, {quoted(first)}, is a header and no class; remove it, and give a name a line, or an index or synset before "
            "each"
        )
    numbers = [int(match["index"]) for line in rest if (match := OF_BOTH.fullmatch(line) or OF_INDICES.fullmatch(line))]
    is_numbered = len(rest) > 1 and sorted(numbers) in (list(range(len(rest))), list(range(1, len(rest) + 1)))
    if is_numbered and not OF_INDICES.fullmatch(first):
        raise ValueError(f"line 1, {quoted(first)}, has no index before a name, as the others have; remove it if it is a header")
    return False


def _unquoted(name: str) -> str:
    """A name without the quotes that tables of several names have around it."""
    if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'":
        return name[1:-1].replace(2 * name[0], name[0])
    return name


def _printed(text: str) -> object | None:
    """A dictionary or list as JSON or Python writes it, with keys as JSON has them; None if it is neither."""
    try:
        found = json.loads(text, object_pairs_hook=without_twins)
    except (RecursionError, json.JSONDecodeError):
        try:
            found = ast.literal_eval(text) if len(text) <= LARGEST_PRINTED else None
        except (RecursionError, MemoryError, SyntaxError, ValueError, TypeError):
            return None
    return {str(key) if type(key) is int else key: value for key, value in found.items()} if isinstance(found, dict) else found


def in_order(entries: list[tuple[int, object]], first: int = 0) -> list[object]:
    """The second of each pair, sorted by the first, which are to be 0, 1, 2 and so on, or begin elsewhere."""
    indices = sorted(index for index, _ in entries)
    for expected, index in enumerate(indices, first):
        if index != expected:
            found, twice = quoted(index), index < expected
            raise ValueError(f"index {found} stands there twice" if twice else f"index {expected} is missing, before {found}")
    return [value for _, value in sorted(entries, key=lambda entry: entry[0])]
