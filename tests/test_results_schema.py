"""The JSON of results: all that is written fits the schema that is shipped, and docs/results.md names each of its keys."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from json_schema import faults
from made_results import IDENTITY, made, whole

from fiducial.evaluation import __main__ as cli
from fiducial.evaluation.data.runs import Row
from fiducial.evaluation.results.compare import FORMAT, compare
from fiducial.evaluation.results.parts import Influences
from fiducial.evaluation.results.reading import known
from fiducial.evaluation.results.result import RESULT_FORMAT
from scripts.stand_ins import pictures

SCHEMA = json.loads((ROOT / "evaluation" / "results" / "schema.json").read_text())
ROW = Row(
    "dit", "its README", {"fid": "2.27"}, ["fid"], "random", "adm", "dit", "adm", 50_000, {"cfg_scale": 1.5}, ["a note"], []
)


def of(kind: str, data: object) -> list[str]:
    """What does not fit."""
    return faults(SCHEMA["$defs"][kind], data, SCHEMA)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict:
    """What `calc` writes of forty images, ten of which are training images."""
    folder = tmp_path_factory.mktemp("written")
    np.savez(folder / "train.npz", arr_0=pictures(50, 0, 64))
    mixed = np.concatenate([pictures(50, 0, 64)[:10], pictures(30, 1, 64)])
    np.savez(folder / "samples.npz", arr_0=mixed, arr_1=np.arange(40) % 4)
    given = [folder / "samples.npz", "--ref", "digits", "--train", folder / "train.npz", "--json", folder / "r.json"]
    cli.run(cli.build_parser().parse_args(["calc", *map(str, given)]))
    return json.loads((folder / "r.json").read_text())


def test_what_calc_writes_fits_the_schema(written):
    assert of("result", written) == []
    assert {"memorisation", "training", "reference", "samples"} <= {key for key, value in written.items() if value}


def test_a_result_with_all_parts_fits_the_schema(written):
    """A curve, classes and their names, and a published row too."""
    full = whole()
    run = full.run.__class__("f" * 64, IDENTITY, full.run.sessions, ROW, "python sample_ddp.py", {"ckpt": "dit.pt"})
    parts = {name: written[name] for name in ("samples", "reference", "extractor", "settings")}
    influences = Influences("r.influences.f32", "a" * 64, {"fid": 1000})
    data = json.loads(replace(full.drawn_by(run), influences=influences).to_json())
    assert data["published"]["lines"]
    assert of("result", data | parts) == []
    assert set(data) == set(SCHEMA["$defs"]["result"]["properties"])


def test_what_compare_writes_fits_the_schema(tmp_path):
    runs = [made(identity=IDENTITY | {"cfg_scale": cfg, "global_seed": seed}, pixels=f"{int(cfg)}{seed}") for cfg, seed in RUNS]
    data = json.loads(compare([known(tmp_path / f"{place}.json", one) for place, one in enumerate(runs)]).to_json())
    assert data["differences"]
    assert data["rows"][0]["varies"] == {"cfg_scale": 1.0}
    assert of("comparison", data) == []


def test_what_compare_writes_of_trainings_fits_the_schema(tmp_path):
    of_trainings = [
        known(tmp_path / f"{ckpt}.json", made(identity=IDENTITY | {"checkpoint_sha256": ckpt * 32}, pixels=ckpt))
        for ckpt in ("ab", "cd")
    ]
    other = known(
        tmp_path / "other.json", made(identity=IDENTITY | {"checkpoint_sha256": "ef" * 32, "cfg_scale": 4.0}, pixels="ef")
    )
    data = json.loads(compare([*of_trainings, other], group_by="checkpoint").to_json())
    assert data["rows"][0]["axes"]["fid"]["trainings"] == 2
    assert [one["paired"] for one in data["how"]] == [False]
    assert of("comparison", data) == []


RUNS = [(1.0, 0), (1.0, 1), (2.0, 0)]


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("metrics", "fid-digits", "value"), "4.8", "$.metrics.fid-digits.value: '4.8' is no number"),
        (("metrics", "fid-digits", "error"), -1.0, "$.metrics.fid-digits.error: -1.0 is too small"),
        (("samples", "pixels_sha256"), "ab", "$.samples.pixels_sha256: 'ab' is not like"),
        (("samples", "image_size"), [64], "$.samples.image_size: has 1 items"),
        (("extractor", "weights"), "fine", "$.extractor.weights: 'fine' is none of"),
        (("format",), "fiducial-result-2", "$.format: 'fiducial-result-2' is not"),
        (("reference",), {}, "$.reference: fits not just one"),
        (("more",), 1, "$: more is not in the schema"),
    ],
)
def test_the_schema_refuses_another_form(where, value, said, written):
    data = copy.deepcopy(written)
    part = data
    for name in where[:-1]:
        part = part[name]
    part[where[-1]] = value
    (fault,) = of("result", data)
    assert fault.startswith(said)


def test_the_versions_are_those_that_are_written():
    kinds = {name: SCHEMA["$defs"][name]["properties"]["format"]["const"] for name in ("result", "comparison")}
    assert kinds == {"result": RESULT_FORMAT, "comparison": FORMAT}


def test_every_key_is_documented():
    """In a table of its own part, with the same words."""
    page, found = (ROOT / "docs" / "results.md").read_text(), 0
    for name, part in SCHEMA["$defs"].items():
        for key, value in part.get("properties", {}).items():
            section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
            (line,) = (line for line in section.splitlines() if line.startswith(f"| `{key}` |"))
            assert value.get("description", "") in line
            assert ("may be absent" in line) == (key not in part["required"])
            found += 1
    assert found > 100
