"""A damaged manifest: whichever part has another type, whoever reads it says so by the part's name and value."""

import json
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import PLAIN, draw_files, run_command

import fiducial
import sample_ddp
from fiducial import UserError
from fiducial.evaluation.data import runs
from fiducial.sampling.commands.status import status
from fiducial.sampling.commands.verify import verify
from fiducial.sampling.identity import fingerprint
from fiducial.sampling.run import hardware
from fiducial.sampling.run.image_files import ImageFiles
from fiducial.sampling.run.prepare import examine
from fiducial.sampling.source import from_checkpoint
from fiducial.sampling.store import manifest as output
from fiducial.sampling.store import parts
from fiducial.sampling.store.folder import MANIFEST, ONLINE

WRONG = ([0], {"a": 1}, 7, "seven", True, None, 0.5)
PYTHONS_WORDS = re.compile(
    r"indices|subscriptable|attribute|iterable|'(int|str|list|dict|NoneType|bool|float)'|\bNone\b|\bTrue\b|Error|unhashable"
)


def digits(folder: Path) -> list[str]:
    sizes = ["--num-fid-samples", "4", "--num-sampling-steps", "2", "--sample-dir", str(folder)]
    return ["--preset", "digits-flow", *PLAIN, *sizes, "--run-name", "run"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """The folder of a run of four digits."""
    folder = tmp_path_factory.mktemp("drawn")
    config, given = sample_ddp.parse(digits(folder))
    draw_files(config, fiducial.init("cpu"), options=vars(given))
    return folder / "run"


@pytest.fixture
def manifest(drawn) -> Path:
    """Its manifest, which is as it was afterwards."""
    path = drawn / MANIFEST
    whole = path.read_bytes()
    yield path
    path.write_bytes(whole)


def broken(text: str, name: str, value: object, consistent: bool = False) -> str:
    """The manifest with another value in the place of one part, which has its first entry if that is a list."""
    content = inner = json.loads(text)
    steps = name.removesuffix("?").replace("[]", ".0").split(".")
    for step in steps[:-1]:
        inner = inner[int(step)] if isinstance(inner, list) else inner[step]
    inner[int(steps[-1]) if isinstance(inner, list) else steps[-1]] = value
    if consistent and isinstance(content["identity"], dict):
        content["fingerprint"] = fingerprint(content["identity"])
    return json.dumps(content)


def sentence(name: str) -> str:
    """How a part is called in it."""
    return name.removesuffix("?").replace("[]", "[0]")


NAMES = parts.OF_EVERY_RUN | parts.OF_FILES


def read_everywhere(path: Path) -> list[str]:
    """What those say who read the manifest and have to understand it."""
    folder, said = path.parent, []
    readers = (
        lambda: status(folder),
        lambda: list(verify(folder, lambda _: None)),
        lambda: output.reread(folder),
        lambda: sample_ddp.parse(["--config", str(path)]),
    )
    for read in readers:
        with pytest.raises(UserError) as refused:
            read()
        said.append(str(refused.value))
    return said


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_another_type_is_named(name, manifest):
    """Consistently with the fingerprint, too, where it is of the identity. Others count what is beside samples as absent."""
    text = manifest.read_text()
    wrong = [value for value in WRONG if not fits(value, NAMES[name])]
    assert len(wrong) >= 4
    for value in wrong:
        manifest.write_text(broken(text, name, value, consistent=name.startswith("identity")))
        for said in read_everywhere(manifest):
            assert f"({sentence(name)} is {parts.in_json(value)}, not {NAMES[name]})" in said
            assert not PYTHONS_WORDS.search(said.partition(" (")[2])
        for read in (runs.names_beside, runs.count_of_run):
            read(manifest.parent)
        for read in (runs.find_names, runs.find_run):
            read(manifest.parent, json.loads(text)["npz"]["pixels_sha256"])


def fits(value: object, kind: str) -> bool:
    types = parts.KINDS[kind]
    return isinstance(value, types) and (type(value) is not bool or bool in types)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(("?", "[]"))])
def test_a_part_that_is_missing_is_named(name, manifest):
    content = inner = json.loads(manifest.read_text())
    *outer, own = name.replace("[]", ".0").split(".")
    for step in outer:
        inner = inner[int(step)] if isinstance(inner, list) else inner[step]
    del inner[own]
    manifest.write_text(json.dumps(content))
    place = sentence(name).rpartition(".")[0] or "it"
    for said in read_everywhere(manifest):
        assert f"({place} has no {own})" in said


def test_the_table_is_of_all_that_a_run_writes(drawn):
    """What it lacks would be read without having been looked at."""
    content = json.loads((drawn / MANIFEST).read_text())
    known = {name.partition(".")[0].removesuffix("?") for name in NAMES if "[" not in name}
    assert known | {"format"} == {*content, "published"}  # which runs of a preset with a published row have besides
    for name in NAMES:
        broken(json.dumps(content), name, 0)  # it is there
    parts.require_parts(content, NAMES)


def test_what_older_runs_lack_is_not_missed(manifest):
    content = json.loads(manifest.read_text())
    for name in ("class_names", "paths", "options", "probe", "records_format"):
        del content[name]
    content["sessions"] = [{"world_size": 1, "images_before": 0}]
    manifest.write_text(json.dumps(content))
    assert output.read(manifest.parent).to_json() == content


def test_an_option_of_another_type_is_named(manifest):
    text = manifest.read_text()
    for value in ({}, None, [None], [[0]]):
        manifest.write_text(broken(text, "options.labels", value))
        with pytest.raises(UserError, match=re.escape(f"(options.labels is {parts.in_json(value)}, not text, a number")):
            sample_ddp.parse(["--config", str(manifest)])


def test_a_run_is_not_resumed_by_a_damaged_manifest(manifest, alone):
    config, _ = sample_ddp.parse(digits(manifest.parent.parent))
    manifest.write_text(broken(manifest.read_text(), "identity", [0]))
    with pytest.raises(UserError, match=r"manifest\.json is not a whole manifest .*\(identity is \[0\], not an object\); move"):
        examine(config, from_checkpoint, ImageFiles(), alone, hardware.Ranks([hardware.own(alone.device)], False), ExitStack())


@pytest.mark.parametrize("command", ["status", "verify"])
def test_a_command_says_it_in_one_sentence(command, manifest):
    manifest.write_text(broken(manifest.read_text(), "identity.labels", 7, consistent=True))
    done = run_command("-m", "sampling", command, manifest.parent)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "(identity.labels is 7, not text); move it away, or choose another --run-name" in done.stderr


def test_of_an_online_run_it_is_said_too(drawn, tmp_path):
    """It has no files of images, whose parts are not missed."""
    content = json.loads((drawn / MANIFEST).read_text()) | {"format": output.ONLINE_FORMAT}
    for name in ("npz", "merged", "records_format"):
        del content[name]
    path = tmp_path / ONLINE
    path.write_text(json.dumps(content))
    assert output.read(tmp_path, output.ONLINE_FORMAT).to_json() == content
    path.write_text(broken(path.read_text(), "class_names.names", "a string"))
    with pytest.raises(UserError, match=r'online\.json is not whole \(class_names\.names is "a string", not a list\)'):
        output.read(tmp_path, output.ONLINE_FORMAT)
