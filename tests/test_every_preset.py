"""Two images of every preset, of stand-ins with the sizes and forms of its files, where the catalogue has them; no internet."""

import json
import re
import resource
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from conftest import PLAIN, run_command
from made_weights import FILES, put_all
from PIL import Image

from fiducial import file_sha256
from fiducial.models.checkpoints import catalogue
from fiducial.sampling.options.presets import ROWS

FEWEST = {"ddpm": ("1",), "dopri5": ("2", "--atol", "1", "--rtol", "1"), "flow-heun": ("1",), "jump": None}  # else 2
MINUTES = 15


@lru_cache
def sha256(path: Path) -> str:
    return file_sha256(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    yield folder
    shutil.rmtree(folder)  # gigabytes, which pytest would keep for the next three sessions


def test_every_published_file_has_a_stand_in():
    assert FILES.keys() == catalogue.PLACES.keys()
    assert catalogue.CATALOGUE.keys() == ROWS.keys()


@pytest.mark.long
@pytest.mark.parametrize("preset", ROWS)
def test_two_images_are_drawn(preset, cache, tmp_path):
    paths, options = put_all(preset, cache), ROWS[preset].options
    steps = FEWEST.get(options["sampler"], ("2",))
    given = ("--num-sampling-steps", *steps) if steps else ()
    where = ("--cache-dir", cache, "--sample-dir", tmp_path, "--run-name", "run", "--num-fid-samples", 2, "--no-probe")
    done = run_command("sample_ddp.py", "--preset", preset, *where, *given, *PLAIN, timeout=60 * MINUTES, FIDUCIAL_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "may be another than the published" not in done.stderr
    size = options["image_size"]
    with np.load(tmp_path / "run.npz") as arrays:
        drawn = arrays["arr_0"]
    assert (drawn.shape, drawn.dtype) == ((2, size, size, 3), np.uint8)
    assert drawn[0].std() > 1
    assert (drawn[0] != drawn[1]).mean() > 0.1
    for index in range(2):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "run" / f"{index:06d}.png")), drawn[index])
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    identity = manifest["identity"]
    assert (manifest["published"]["name"], identity["model"]) == (preset, options["model"])
    assert {name for name, *_ in manifest["published"]["differing"]} <= {"num_sampling_steps", "atol", "rtol"}
    assert manifest["paths"]["ckpt"] == str(paths["ckpt"])
    assert identity["checkpoint_sha256"] == sha256(paths["ckpt"])
    weak = paths.get("guidance_ckpt")
    assert identity.get("guidance_checkpoint_sha256") == (sha256(weak) if weak else None)
    if "vae" in paths:
        assert (manifest["paths"]["vae"], identity["vae_sha256"]) == (str(paths["vae"]), sha256(paths["vae"]))
    assert ("latent_stats_sha256" in identity) == ("latent_stats" in options or "latent_stats" in paths or "repa-e" in preset)
    print(f"{preset}: peak {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.1f} GiB; {time_of(done.stdout)}")


def time_of(said: str) -> str:
    """The run's own words on how long it took."""
    return next((line for line in reversed(said.splitlines()) if re.search(r"\d s\b|min", line)), "")
