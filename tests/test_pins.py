"""What must not change by accident, pinned: fingerprints of presets, bytes of `--exact` runs, and whole results.

`pins.json` was written by `python tests/test_pins.py`; a change of it is a change of what people have published.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_command

import sample_ddp
from fiducial.sampling.identity import fingerprint
from scripts.stand_ins import write_inception

PINS = Path(__file__).with_name("pins.json")
PRESETS = ("digits", "digits-flow", "dit-xl-2-256", "dit-xl-2-512")
RUNS = {  # by name: options beside the sizes
    **{sampler: ("--preset", "digits", "--sampler", sampler) for sampler in ("ddpm", "ddim", "dpm-solver++")},
    "digits-flow": ("--preset", "digits-flow"),
}
# Instructions that every processor has, so that sums are the same on each.
PORTABLE = {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1"}
CANARY = """
import hashlib, torch
torch.manual_seed(0); torch.set_num_threads(1)
x, y = torch.randn(96, 96), torch.randn(2, 8, 16, 16)
found = [x @ x, x.exp(), x.softmax(1), torch.nn.functional.conv2d(y, torch.randn(8, 8, 3, 3))]
print(hashlib.sha256(b"".join(value.numpy().tobytes() for value in found)).hexdigest())
"""
VOLATILE = ("created", "packages", "fiducial", "path", "source", "device", "paths", "options", "sessions", "run", "file")
LOOSE = 2e-3  # relative, where sums may come out otherwise: a covariance of few images is all but singular


def canary() -> str:
    """What this processor's sums come to, on which the bytes of a run hang."""
    done = run_command("-c", CANARY, **PORTABLE)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def draw(folder: Path, name: str, *more: str) -> Path:
    """A small exact run of the digits, one of `RUNS`."""
    size = ("--num-fid-samples", "12", "--per-proc-batch-size", "4", "--num-sampling-steps", "5")
    where = ("--device", "cpu", "--sample-dir", folder, "--run-name", name)
    done = run_command("sample_ddp.py", *RUNS[name], "--exact", *size, *where, *more, **PORTABLE)
    assert done.returncode == 0, done.stderr
    return folder / name


def of_run(run: Path) -> dict:
    """What is pinned of an exact run."""
    npz, manifest = run.with_name(f"{run.name}.npz"), json.loads((run / "manifest.json").read_text())
    with np.load(npz) as arrays:
        means = arrays["arr_0"].mean((1, 2, 3)).tolist()
    pngs = b"".join(path.read_bytes() for path in sorted(run.glob("*.png")))
    return {
        "npz": hashlib.sha256(npz.read_bytes()).hexdigest(),
        "pngs": hashlib.sha256(pngs).hexdigest(),
        "means": means,
        "format": manifest["format"],
        "fingerprint": manifest["fingerprint"],
        "identity": manifest["identity"],
    }


def of_result(path: Path) -> dict:
    """A result without what is of its day and place."""

    def kept(value: object) -> object:
        if isinstance(value, dict):
            if "counts" in value and "sha256" in value:  # of influences, whose last bits are the processor's
                value = {key: part for key, part in value.items() if key != "sha256"}
            return {key: kept(part) for key, part in value.items() if key not in VOLATILE and not key.endswith("_sha256")}
        if isinstance(value, list):
            return [kept(part) for part in value]
        return re.sub(r"SHA-256 [0-9a-f]+", "SHA-256", value) if isinstance(value, str) else value

    return kept(json.loads(path.read_text()))


def pictures(count: int, seed: int, size: int = 64) -> np.ndarray:
    """Waves of several directions and colours, (count, size, size, 3) uint8, by integers and one table of sines."""
    random = np.random.default_rng(seed)
    table = np.rint(100 * np.sin(np.arange(256) * np.pi / 128)).astype(np.int64)
    down, across, phase = (random.integers(low, high, (count, 3, 1, 1)) for low, high in ((1, 12), (1, 12), (0, 256)))
    at = np.arange(size)
    waves = table[(down * at[:, None] + across * at + phase) % 256]
    return (128 + waves + random.integers(-20, 20, waves.shape)).transpose(0, 2, 3, 1).astype(np.uint8)


def calc(folder: Path, name: str, count: int, *options: str | Path) -> dict:
    """The result of some pictures."""
    np.savez(folder / f"{name}.npz", arr_0=pictures(count, 1), arr_1=np.arange(count) % 10)
    where = (folder / f"{name}.npz", "--json", folder / f"{name}.json", "--no-cache", "--device", "cpu")
    done = run_command("-m", "evaluation", "calc", *where, *options, timeout=300)
    assert done.returncode == 0, done.stderr
    return of_result(folder / f"{name}.json")


def of_digits(folder: Path) -> dict:
    return calc(folder, "digits", 700, "--ref", "digits")


def of_inception(folder: Path, weights: Path) -> dict:
    np.savez(folder / "reference.npz", arr_0=pictures(10, 2))
    metrics = ("--metrics", "fid,sfid,is,precision,recall,kid", "--kid-subset-size", "8")
    return calc(folder, "inception", 10, "--ref", folder / "reference.npz", "--inception-weights", weights, *metrics)


def of_online(folder: Path) -> dict:
    run = draw(folder, "ddpm", "--evaluate-online", "--ref", "digits")
    return of_result(run.with_name(f"{run.name}-online.json"))


def differences(found: object, pinned: object, where: str = "result") -> list[str]:
    """The places where they differ, numbers by more than `LOOSE`."""
    if isinstance(pinned, dict) and isinstance(found, dict):
        alone = [f"{where}.{key} is on one side only" for key in sorted(found.keys() ^ pinned.keys())]
        shared = sorted(found.keys() & pinned.keys())
        return alone + [text for key in shared for text in differences(found[key], pinned[key], f"{where}.{key}")]
    if isinstance(pinned, list) and isinstance(found, list) and len(found) == len(pinned):
        pairs = enumerate(zip(found, pinned, strict=True))
        return [text for row, pair in pairs for text in differences(*pair, f"{where}[{row}]")]
    expected = pytest.approx(pinned, rel=LOOSE, abs=LOOSE) if isinstance(pinned, float) else pinned
    return [] if found == expected else [f"{where} is {found!r}, and was {pinned!r}"]


@pytest.fixture(scope="module")
def pins() -> dict:
    return json.loads(PINS.read_text())


@pytest.mark.parametrize("preset", PRESETS)
def test_the_identity_of_a_preset_is_pinned(preset, pins):
    config, _ = sample_ddp.parse(["--preset", preset])
    assert fingerprint(config.identity()) == pins["presets"][preset]


@pytest.mark.parametrize("name", RUNS)
def test_the_bytes_of_an_exact_run_are_pinned(name, pins, tmp_path):
    found, pinned = of_run(draw(tmp_path, name)), pins["runs"][name]
    assert found["fingerprint"] == fingerprint(found["identity"])
    if canary() != pins["canary"]:  # another kind of processor: the same images, but for the last bits of sums
        assert differences(found.pop("means"), pinned.pop("means")) == []
        found, pinned = ({key: part[key] for key in ("format", "fingerprint", "identity")} for part in (found, pinned))
    assert found == pinned


def test_the_result_of_digits_is_pinned(pins, tmp_path):
    assert differences(of_digits(tmp_path), pins["digits"]) == []


def test_the_result_of_inception_is_pinned(pins, tmp_path, inception_weights):
    assert differences(of_inception(tmp_path, inception_weights), pins["inception"]) == []


def test_the_result_of_an_online_run_is_pinned(pins, tmp_path):
    assert differences(of_online(tmp_path), pins["online"]) == []


def write(folder: Path) -> None:
    """Pins what is so today."""
    torch.set_num_threads(1)
    weights = write_inception(folder / "weights.pth")
    found = {
        "canary": canary(),
        "presets": {name: fingerprint(sample_ddp.parse(["--preset", name])[0].identity()) for name in PRESETS},
        "runs": {name: of_run(draw(folder, name)) for name in RUNS},
        "digits": of_digits(folder),
        "inception": of_inception(folder, weights),
        "online": of_online(folder / "online"),
    }
    PINS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    import tempfile

    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
