"""Memory at the size of a publication, with a stub in the place of the network; minutes, so not among the default tests."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import fiducial
from fiducial.evaluation.data.references import Reference
from fiducial.evaluation.evaluate import Evaluation
from fiducial.evaluation.features import EXTRACTORS
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.fit import choose_metrics
from fiducial.evaluation.metrics.neighbours import neighbourhoods
from fiducial.evaluation.settings import Settings

COUNT, SIZE = 50_000, 256


def peak() -> float:
    """The most resident memory so far since `forget_peak`, GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6


def forget_peak() -> float:
    """The level from which memory is counted, GB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def sparse_npz(path: Path) -> Path:
    """An npz of 50,000 images of 256 x 256, black but for their first bytes, in a file that takes no room on the disk."""
    shape = (COUNT, SIZE, SIZE, 3)
    image = SIZE * SIZE * 3
    header = bytearray()

    class Sink:
        def write(self, data):
            header.extend(data)

    np.lib.format.write_array_header_1_0(Sink(), {"descr": "|u1", "fortran_order": False, "shape": shape})
    size = len(header) + COUNT * image
    marks = [struct.pack("<I", index) for index in range(COUNT)]
    crc, gap = zlib.crc32(header), bytes(image - 4)
    for mark in marks:
        crc = zlib.crc32(gap, zlib.crc32(mark, crc))
    name, extra = b"arr_0.npy", struct.pack("<HHQQ", 1, 16, size, size)
    common = struct.pack("<HHHHHIIIHH", 45, 0, 0, 0, 33, crc, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra))
    with open(path, "wb") as file:
        file.write(b"PK\x03\x04" + common + name + extra + header)
        start = file.tell()
        for index, mark in enumerate(marks):
            file.seek(start + index * image)
            file.write(mark)
        file.truncate(start + COUNT * image)
        file.seek(0, 2)
        directory = file.tell()
        central = b"PK\x01\x02" + struct.pack("<H", 45) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name + extra
        file.write(central)
        file.write(b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, len(central), directory))
        file.write(b"PK\x06\x07" + struct.pack("<IQI", 0, directory + len(central), 1))
        file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), 0xFFFFFFFF, 0))
    return path


def stub(group: fiducial.Group) -> Extractor:
    """Features of Inception's widths, from random numbers seeded by each image's first bytes."""
    generator = torch.Generator()
    head = torch.randn(2048, 1008) * 0.05

    def apply(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        generator.manual_seed(int.from_bytes(images[0].permute(1, 2, 0).reshape(-1)[:4].numpy().tobytes(), "little"))
        return torch.rand(len(images), 2048, generator=generator), torch.rand(len(images), 2023, generator=generator)

    return Extractor("inception", 2048, "0" * 64, group.device, apply, lambda rows: rows @ head, spatial_dimension=2023)


@pytest.mark.long
def test_fid_sfid_and_is_of_50000_images_take_less_than_1_gb(tmp_path, alone):
    samples = sparse_npz(tmp_path / "samples.npz")
    extractor, settings = stub(alone), Settings(cache_dir=tmp_path / "cache")
    statistics = {"mu": np.full(2048, 0.5), "sigma": np.eye(2048) / 12, "mu_s": np.full(2023, 0.5), "sigma_s": np.eye(2023) / 12}
    reference = Reference(tmp_path, "0", "ADM's statistics and images", **statistics)
    metrics, left_out = choose_metrics(reference, EXTRACTORS["inception"], settings)
    assert metrics == ("fid", "sfid", "is", "fid-infinity")
    before = forget_peak()
    result = Evaluation(reference, extractor, settings, alone, metrics, left_out).evaluate(samples)
    used = peak() - before
    print(f"{used:.2f} GB above the start")
    assert used < 1.0
    # The features are uniform on [0, 1]: the distance is what the finite number of samples leaves.
    assert result.metrics["fid"].value < 2.5
    assert result.metrics["sfid"].value < 2.5
    assert abs(result.metrics["fid-infinity"].value) < 0.1 * result.metrics["fid"].value
    assert result.metrics["fid-infinity"].low < 0 < result.metrics["fid-infinity"].high
    print({name: (metric.value, metric.error) for name, metric in result.metrics.items()})
    assert result.samples["count"] == COUNT


@pytest.mark.long
def test_precision_and_recall_of_50000_and_10000_take_less_than_2_gb(tmp_path, alone):
    """The features lie on the disk, as those of an evaluation do."""
    random, arrays = np.random.default_rng(0), []
    for name, count in (("samples", COUNT), ("reference", 10_000)):
        rows = np.memmap(tmp_path / name, dtype=np.float32, mode="w+", shape=(count, 2048))
        for start in range(0, count, 1000):
            rows[start : start + 1000] = np.abs(random.normal(0.4, 0.3, (1000, 2048)))
        rows.flush()
        del rows
        arrays.append(np.memmap(tmp_path / name, dtype=np.float32, mode="c", shape=(count, 2048)))
    before = forget_peak()
    found = neighbourhoods(arrays[1], arrays[0], alone)
    used = peak() - before
    print(f"{used:.2f} GB above the start")
    assert used < 2.0
    assert 0 < found.precision.value < 1
    assert 0 < found.recall.value < 1
