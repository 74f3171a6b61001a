"""Benchmarks of runs for scripts/benchmark.py: packing against a plain loop, and how all that grows with images and ranks."""

import os
import socket
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

DISTINCT = 50  # pictures that all images are copies of
TINY = 8  # pixels of an image where only their number matters
BLOCK = 32
RANKS = 1024
SIZES = {f"{count:,} images": count for count in (1_000, 32_000, 1_000_000, 10_000_000)}
PROCESSES = 8  # that stand in for the ranks of one start


def make_run(folder: Path, count: int, size: int, pictures: np.ndarray | None) -> None:
    """A finished run: PNGs, npz and records; with `pictures` repeated over the indices, or without PNGs and all black."""
    from fiducial.sampling.store import npz as archive
    from fiducial.sampling.store import records
    from fiducial.sampling.store.png import png_bytes, png_path

    folder.mkdir(parents=True)
    black = np.zeros((1, size, size, 3), dtype=np.uint8)
    rows = []
    for number, pixels in enumerate(black if pictures is None else pictures):
        encoded = png_bytes(pixels)
        (folder.parent / f"{number}.png").write_bytes(encoded)
        png = (0, 0) if pictures is None else (zlib.crc32(encoded), len(encoded))
        rows.append(records.row(number, pixels.tobytes(), zlib.crc32(pixels.tobytes()), png))
    rows = np.concatenate(rows)
    with open(records.table_path(folder), "wb") as table, open(archive.part_path(folder), "wb") as npz:
        npz.truncate(archive.slot(count, size))
        for start in range(0, count, records.CHUNK):
            indices = np.arange(start, min(start + records.CHUNK, count))
            some = rows[indices % len(rows)]
            some["index"] = indices
            some["check"] = records.checks(some)
            table.write(some.tobytes())
        if pictures is not None:
            npz.seek(archive.slot(0, size))
            for index in range(count):
                npz.write(pictures[index % len(pictures)])
                path = png_path(folder, index)
                path.parent.mkdir(exist_ok=True)
                path.hardlink_to(folder.parent / f"{index % len(pictures)}.png")


def pack_plainly(folder: Path, count: int) -> None:
    """Pack as the scripts do that people copy, but for holding it all in memory."""
    from PIL import Image

    from fiducial.sampling.store.png import png_path

    with open(folder.parent / "plain.npy", "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, 256, 256, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for index in range(count):
            file.write(np.asarray(Image.open(png_path(folder, index), formats=("PNG",))).astype(np.uint8).tobytes())


def pack(folder: Path, count: int, size: int, from_pngs: bool) -> None:
    """The end of a run: each place is compared with the records, filled from the PNG where need be, and the frame put around."""
    from fiducial.sampling.store import npz as archive
    from fiducial.sampling.store import records, repair

    reopen(folder, count, size)
    part = archive.part_path(folder)
    if from_pngs:
        os.truncate(part, 0)
        os.truncate(part, archive.slot(count, size))
    npz = os.open(part, os.O_RDWR)
    for start in range(0, count, records.CHUNK):
        rows = records.table(folder, start, min(start + records.CHUNK, count))
        older = np.zeros(len(rows), dtype=bool)
        found = repair.mend(repair.Copies(folder, npz, size), rows, True, older, lambda _: None)
        assert not found.lost, found.lost[:10]
    os.close(npz)
    complete(folder, count, size)


def reopen(folder: Path, count: int, size: int) -> None:
    """Undo `complete`, for the next turn."""
    from fiducial.sampling.store import npz as archive

    if archive.npz_path(folder).exists():
        os.replace(archive.npz_path(folder), archive.part_path(folder))
        os.truncate(archive.part_path(folder), archive.slot(count, size))


def complete(folder: Path, count: int, size: int) -> None:
    """Do what rank 0 does alone: checksums of all, labels, directory."""
    from fiducial.sampling import plan
    from fiducial.sampling.store import npz as archive
    from fiducial.sampling.store import records

    crcs, _ = records.summary(folder, count)
    labels = plan.labels("random", 1000, 0, 0, count)
    whole = archive.npz_path(folder)
    archive.complete(archive.part_path(folder), whole, archive.frame(labels, size, crcs))


def plan_work(folder: Path, count: int) -> None:
    """From the records, with nine of ten images done, to what one rank of many is to draw, as rank 0 and another find out."""
    from fiducial.sampling import plan
    from fiducial.sampling.identity import Identity
    from fiducial.sampling.store import records
    from fiducial.sampling.store.task import Task

    done = records.done(folder, count, {})
    assert 0.85 < done.mean() < 0.91
    text = Task(folder, 1, "", Identity({}), done).to_json()
    task = Task.from_json(text)
    blocks = plan.share(plan.pending_blocks(task.done, BLOCK), 17, RANKS)
    assert len(blocks) or count < RANKS * BLOCK


def undo_some(folder: Path, count: int) -> None:
    """Take the rows of every tenth block away, and load what the plan needs, which is no part of it."""
    import fiducial.sampling.run.prepare  # noqa: F401
    from fiducial.sampling.store import records

    with open(records.table_path(folder), "r+b") as table:
        for start in range(0, count, 10 * BLOCK):
            table.seek(start * records.ROW.itemsize)
            table.write(bytes((min(BLOCK, count - start)) * records.ROW.itemsize))


def give_parts(folder: Path, count: int) -> None:
    """Records that 1,024 ranks have added when they drew every tenth block."""
    from fiducial.sampling.store import records

    (folder / "records").mkdir(exist_ok=True)
    row = records.row(0, b"", 0)
    parts = [open(records.part_path(folder, 1, rank), "wb") for rank in range(RANKS)]  # noqa: SIM115
    for number, start in enumerate(range(0, count, 10 * BLOCK)):
        rows = np.repeat(row, min(BLOCK, count - start))
        rows["index"] = np.arange(start, start + len(rows))
        rows["check"] = records.checks(rows)
        parts[number % RANKS].write(rows.tobytes())
    for part in parts:
        part.close()


def merge_parts(folder: Path) -> None:
    from fiducial.sampling.store import records

    records.merge(folder, {1: RANKS})


def draw_stubs(folder: Path, count: int, with_png: bool) -> None:
    """A whole run by one rank whose network takes no time, as the engine does it."""
    import fiducial
    from fiducial.sampling.identity import Identity
    from fiducial.sampling.run import trunk
    from fiducial.sampling.run.image_files import ImageFiles
    from fiducial.sampling.run.sinks import RunFolder
    from fiducial.sampling.store import npz as archive
    from fiducial.sampling.store import records
    from fiducial.sampling.store.task import Task

    folder.mkdir(parents=True, exist_ok=True)
    identity = {"labels": "random", "num_classes": 1000, "global_seed": 0, "image_size": TINY, "per_proc_batch_size": BLOCK}
    part = archive.part_path(folder)
    part.touch()
    os.truncate(part, archive.slot(count, TINY))
    task = Task(folder, 1, "", Identity(identity), np.zeros(count, dtype=bool), npz=part)
    black = np.zeros((BLOCK, TINY, TINY, 3), dtype=np.uint8)
    source = SimpleNamespace(blocks=lambda starts, *_: ((start, black) for start in starts))
    sink, group = ImageFiles(with_png), fiducial.init("cpu")
    sink.open(place := RunFolder(task, group, None, 0.0), group)
    trunk.draw(task.plan, source, sink, place, task.plan.starts(task.done), ~task.done, lambda _: None)
    sink.mend(lambda *_: None)
    assert records.done(folder, count, {}).all()
    complete(folder, count, TINY)


def start_ranks(ranks: int, count: int) -> list[int]:
    """From the first connection until every rank knows what is to be done; the ranks are threads of a few processes.

    Returns:
        their exit codes.
    """
    import torch.distributed as dist

    from fiducial import Group
    from fiducial.ranks.joining import meet
    from fiducial.sampling.identity import Identity
    from fiducial.sampling.store.task import Task

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    command = [sys.executable, "-c", "from scripts.benchmark_runs import be_ranks; be_ranks()"]
    shares = [range(1 + number, ranks, PROCESSES) for number in range(PROCESSES)]
    processes = [subprocess.Popen([*command, str(port), str(ranks), *map(str, share)]) for share in shares]
    group = Group(0, ranks, 0, "0", None, meet(store, 0, ranks))
    done = np.random.default_rng(0).random(count) < 0.5  # compresses worst
    group.once(lambda: Task(Path("run"), 1, "", Identity({}), done).to_json())
    group.wait()
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"ranks ended with {codes}")
    return codes


def be_ranks() -> None:
    """Some ranks, one thread each; for `start_ranks`."""
    import torch.distributed as dist

    from fiducial import Group
    from fiducial.ranks.joining import meet
    from fiducial.sampling.store.task import Task

    port, ranks, *own = map(int, sys.argv[1:])

    def be(rank: int) -> None:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        group = Group(rank, ranks, 0, "0", None, meet(store, rank, ranks))
        Task.from_json(group.once(lambda: ""))
        group.wait()

    threads = [threading.Thread(target=be, args=(rank,)) for rank in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def evaluate_stubs(folder: Path, _: int) -> None:
    """One pass over the npz of a run: hashes, and statistics of 64 features that take no time to compute."""
    import torch

    import fiducial
    from fiducial.evaluation.data.opening import open_images
    from fiducial.evaluation.features.extraction import extract
    from fiducial.evaluation.features.extractor import Extractor

    def features(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return images.flatten(1)[:, :64].float(), None

    stub = Extractor("stub", 64, "", torch.device("cpu"), features, lambda rows: rows, suffix="-stub", image_size=TINY)
    extract(open_images(folder.with_name("run.npz")), stub, fiducial.init("cpu"), 1000, folder.parent / "cache")
