"""Manifests, results and options that nobody wrote by accident: one sentence, in seconds, and in little memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from conftest import ROOT
from made_results import made
from made_runs import make_run

import sample_ddp
from fiducial import UserError, decode_json
from fiducial.evaluation.data.runs import find_run
from fiducial.evaluation.results.reading import read_result
from fiducial.sampling import plan
from fiducial.sampling.commands.status import status
from fiducial.sampling.commands.verify import verify
from fiducial.sampling.identity import fingerprint
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.store import manifest as output
from fiducial.sampling.store.folder import MANIFEST

MOST_MEMORY = 500e6
TRIED = r"""
import re, sys
from pathlib import Path
from fiducial import UserError
from fiducial.sampling.commands.status import status
from fiducial.sampling.commands.verify import verify
for look in (status, lambda folder: list(verify(folder, lambda _: None))):
    try:
        print(look(Path(sys.argv[1])))
    except UserError as error:
        print("error:", error)
print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""


def with_identity(manifest: dict, **fields) -> dict:
    """The same with another identity, and its fingerprint."""
    identity = manifest["identity"] | fields
    return manifest | {"identity": identity, "fingerprint": fingerprint(identity)}


def inside(manifest: dict, text: str) -> str:
    """Its text with one more entry."""
    return f'{json.dumps(manifest)[:-1]}, "x": {text}}}'


HOSTILE: dict[str, tuple[Callable[[dict], str], str]] = {
    "lists": (lambda manifest: inside(manifest, "[" + "[]," * 5_000_000 + "0]"), "has more than 1,048,576 values"),
    "objects": (lambda manifest: inside(manifest, "[" + "{}," * 10_000_000 + "0]"), "more than the 16,777,216 that such a file"),
    "long text": (lambda manifest: inside(manifest, f'"{"y" * 16_000_000}"'), ""),
    "longer text": (lambda manifest: inside(manifest, f'"{"y" * 17_000_000}"'), "more than the 16,777,216 that such a file"),
    "wide text": (lambda manifest: inside(manifest, f'"{"y" * 16_000_000}\U0001f600"'), ""),
    "deep": (lambda _: "[" * 1_000_000, "nested too deeply"),
    "deep inside": (lambda manifest: inside(manifest, "[" * 900 + "]" * 900), "nested too deeply"),
    "label ranges": (
        lambda manifest: json.dumps(with_identity(manifest, num_classes=1048575, labels=",".join(["0-1048574"] * 3000))),
        "comes to more than 4,194,304 labels",
    ),
    "many labels": (
        lambda manifest: json.dumps(with_identity(manifest, labels="0-9," * 1_000_000 + "1")),
        "4,000,001 characters",
    ),
    "a huge range": (lambda manifest: json.dumps(with_identity(manifest, labels=f"0-{10**12}")), "not within the classes 0 to 9"),
    "huge images": (lambda manifest: json.dumps(with_identity(manifest, image_size=16383)), "image_size is 16383"),
    "ranks": (
        lambda manifest: json.dumps(manifest | {"sessions": [manifest["sessions"][0] | {"world_size": 10**6}], "merged": 0}),
        "its sessions had 1,000,000 ranks",
    ),
    "not UTF-8": (lambda manifest: json.dumps(manifest)[:-1] + "\udcff", "not UTF-8, as its byte"),
    "no object": (lambda _: "[]", "it is no JSON object"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_one_sentence_in_little_memory(name, tmp_path):
    make, said = HOSTILE[name]
    run = make_run(tmp_path)
    manifest = run / MANIFEST
    manifest.write_bytes(make(json.loads(manifest.read_text())).encode(errors="surrogateescape"))
    child = subprocess.run([sys.executable, "-c", TRIED, run], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
    *lines, peak = child.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert not said or (line.startswith(f"error: {manifest} is not a whole manifest") and said in line)
        assert len(line) < 1000
    assert int(peak) < MOST_MEMORY


def test_what_a_manifest_cannot_hold_is_not_written(tmp_path):
    """Sessions give up what happened in them, the older ones first, before class names are refused."""
    run = make_run(tmp_path)
    manifest = output.read(run)
    session = manifest.sessions[0]
    told = [{"event": "x" * 1000}] * 4000
    output.write(run, replace(manifest, sessions=[replace(session, events=told, hosts=["a"]) for _ in range(6)]))
    again = output.read(run)
    assert [len(session.events) for session in again.sessions] == [0, 0, 0, 4000, 4000, 4000]
    assert all(session.hosts == ["a"] for session in again.sessions)
    with pytest.raises(UserError, match="which nobody reads again"):
        output.write(run, replace(manifest, paths={"ckpt": "x" * (1 << 24)}))
    assert output.read(run) == again


def test_labels_of_the_command_line_are_bounded():
    for labels, said in (("0-999999999999", "not within"), (",".join(["0-999"] * 5000), "comes to more than 4,194,304 labels")):
        with pytest.raises(UserError, match=said) as refused:
            SamplingConfig(labels=labels).validate()
        assert len(str(refused.value)) < 300
    with pytest.raises(UserError, match="--num-classes 1000000000001: must be at least 1 and at most 1,048,575"):
        SamplingConfig(labels="0-999999999999", num_classes=10**12 + 1).validate()


def test_labels_with_leading_zeros_are_the_numbers_that_they_are():
    assert plan.parse_labels(f"{'0' * 80}7,008-9", 10).tolist() == [7, 8, 9]


@pytest.mark.parametrize("name", ["lists", "longer text", "deep inside", "label ranges", "huge images"])
def test_a_hostile_manifest_as_options_is_one_sentence(name, tmp_path):
    make, said = HOSTILE[name]
    path = make_run(tmp_path) / MANIFEST
    path.write_text(make(json.loads(path.read_text())))
    with pytest.raises(UserError) as refused:
        sample_ddp.parse(["--config", str(path)])
    assert str(refused.value).startswith(f"--config {path}: ")
    assert len(str(refused.value)) < 600
    assert any(text in str(refused.value) for text in (said, "more than the 262,144 that options can have", "is not YAML"))


@pytest.mark.parametrize(
    "options",
    [{str(number): 1 for number in range(10_000)}, {"labels": [1] * 500_000}, {"ckpt": "x" * 10_000_000}, {"eta": {}}],
    ids=["many", "list", "long", "object"],
)
def test_options_that_were_never_recorded_are_refused(options, tmp_path):
    path = make_run(tmp_path) / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"options": options}))
    with pytest.raises(UserError, match="is not a whole manifest of format") as refused:
        sample_ddp.parse(["--config", str(path)])
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 900 + "]" * 900, "nested too deeply"),
        ("[" + "[]," * 5_000_000 + "0]", "values"),
        (f'"{"y" * 17_000_000}"', "bytes"),
    ],
    ids=["deep", "many", "long"],
)
def test_hostile_results_are_one_sentence(text, said, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(f'{made().to_json().rstrip()[:-1]}, "x": {text}}}')
    with pytest.raises(UserError, match=said):
        read_result(path)


def test_a_run_that_no_number_can_describe_is_none(tmp_path):
    """An infinity in the place of a count: nobody vouches for what stands beside a file."""
    path = make_run(tmp_path) / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["sessions"][0] |= {"images_drawn": float("inf"), "seconds": 1.0, "device": "cpu"}
    path.write_text(json.dumps(manifest))
    assert find_run(tmp_path / "run.npz", manifest["npz"]["pixels_sha256"]) is None


def test_json_is_as_deep_as_anybody_needs():
    assert decode_json("[" * 60 + "]" * 60)
    with pytest.raises(ValueError, match="nested too deeply"):
        decode_json("[" * 70 + "]" * 70)


def test_a_plain_run_passes(tmp_path):
    run = make_run(tmp_path)
    assert status(run).state == "complete"
    assert not list(verify(run, lambda _: None))


def test_the_longest_list_of_labels_can_be_written_and_read(tmp_path):
    """It stands in the manifest twice."""
    labels = "7," * (plan.LONGEST_SPEC // 2 - 1) + "7"
    run = make_run(tmp_path, labels=labels)
    output.write(run, replace(output.read(run), options={"labels": labels}))
    assert output.read(run).identity.labels == labels
