"""How docstrings begin and how pages are set: what can be told without reading them."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

from fiducial.wings import WINGS

LONGEST_CLASS, LONGEST_FUNCTION = 150, 60  # lines
WIDTH = 130  # of a line of code too
FILES = [path for folder in ("fiducial", *WINGS, "scripts", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# Verbs that tell of a function in the third person, where an imperative or the name of what is returned belongs.
TOLD = {
    *(
        "Adds",
        "Asks",
        "Calls",
        "Checks",
        "Chooses",
        "Compares",
        "Computes",
        "Does",
        "Downloads",
        "Draws",
        "Ends",
        "Fetches",
        "Fills",
    ),
    *("Finds", "Gives", "Goes", "Has", "Holds", "Keeps", "Leaves", "Lets", "Loads", "Looks", "Makes", "Merges", "Moves", "Opens"),
    *("Prints", "Puts", "Raises", "Reads", "Removes", "Replaces", "Returns", "Runs", "Says", "Sets", "Takes", "Tells", "Turns"),
    *("Waits", "Writes"),
}
RIDDLES = re.compile(r"\bhangs? on\b|\bhold against\b|\bheld against\b|[Ww]hat sees to it")


def docstrings(path: Path, *kinds: type[ast.AST]) -> list[str]:
    """Of the functions in a file, or of what else is of these kinds."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds or ast.FunctionDef)]
    return [text for node in found if (text := ast.get_docstring(node))]


def test_no_docstring_begins_with_a_riddle():
    """What something is, does or holds has a name: "The metadata of a file", not "What a file has beside its tensors"."""
    for path in [*FILES, ROOT / "sample_ddp.py"]:
        found = docstrings(path, ast.Module, ast.ClassDef, ast.FunctionDef)
        assert not [text for text in found if re.match(r"(What|Who)\b", text)], path


def test_docstrings_begin_with_an_imperative_or_with_what_is_returned():
    for path in [*FILES, ROOT / "sample_ddp.py"]:
        assert not [text for text in docstrings(path) if re.match(r"\w+", text) and text.split()[0].strip(",.:") in TOLD], path


@pytest.mark.parametrize("path", [*PAGES, *FILES], ids=lambda path: str(path.relative_to(ROOT)))
def test_words_are_common_ones(path):
    if path.name != "CHANGELOG.md":  # of what was so before
        assert not RIDDLES.search(" ".join(path.read_text().split()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_are_wrapped_at_one_width(page):
    """But for tables, commands, pictures and links, which cannot be."""
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        fenced ^= line.startswith("```")
        if fenced or line.startswith(("|", "    ", "![")) or " " not in line.strip("-* "):
            continue
        assert len(line) <= WIDTH, f"{page.name}, line {number}"


def test_functions_and_classes_fit_on_a_screen_or_three():
    """All of them: what is longer has parts that can stand by themselves."""
    most = {ast.ClassDef: LONGEST_CLASS, ast.FunctionDef: LONGEST_FUNCTION}
    for path in FILES:
        found = [node for node in ast.walk(ast.parse(path.read_text())) if type(node) in most]
        assert not [node.name for node in found if node.end_lineno - node.lineno >= most[type(node)]], path
