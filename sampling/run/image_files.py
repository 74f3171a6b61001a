"""Images kept as files: an npz, in which each has its place, and PNGs beside it; every one is checked before the run is done."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fiducial import Group, UserError, check_lengths, open_new, open_to_write
from fiducial.models.decoders.rounding import NONE
from fiducial.sampling.plan import Plan
from fiducial.sampling.run.checks import SHORTER, check_records, tell_of_siblings
from fiducial.sampling.run.progress import progress
from fiducial.sampling.run.sinks import OnWritten, Redraw, RunFolder
from fiducial.sampling.source.protocol import ResolvedRun
from fiducial.sampling.store import disk, records, repair
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store.folder import RESERVE, RESERVED, longest_path
from fiducial.sampling.store.manifest import MANIFEST_FORMAT, Manifest, Npz
from fiducial.sampling.store.png import remove_unfinished
from fiducial.sampling.store.writer import BlockWriter

LATE_SECONDS = 60


class ImageFiles:
    """A sink that leaves RUN.npz and, unless they are not wanted, RUN/000000.png and so on."""

    made, suffix = MANIFEST_FORMAT, ""

    def __init__(self, with_png: bool = True):
        self.with_png = with_png

    def check_lengths(self, folder: Path) -> None:
        check_lengths(SHORTER, archive.part_path(folder), longest_path(folder))

    def look(self, folder: Path, manifest: Manifest | None, run: ResolvedRun) -> np.ndarray:
        if run.identity.values.get("rounding") == NONE:
            raise UserError("--rounding none: files of images hold no floats; keep features alone, or choose another rule")
        if manifest is None and run.config.run_name is None:
            tell_of_siblings(folder, run.identity)
        count, mark = run.config.num_fid_samples, manifest.mark if manifest else 0
        done = np.zeros(count, dtype=bool)
        if manifest:
            check_records(folder, manifest)
            done = records.done(folder, count, manifest.unmerged, mark)
        disk.check_room(folder, count, int((~done).sum()), run.identity.image_size, self.with_png, mark)
        return done

    def claim(self, folder: Path, manifest: Manifest) -> np.ndarray:
        check_records(folder, manifest)
        records.merge(folder, manifest.unmerged, manifest.num_fid_samples, manifest.mark)
        manifest.merged = len(manifest.sessions)
        return records.done(folder, manifest.num_fid_samples, {}, manifest.mark)

    def begin(self, folder: Path, plan: Plan, image_size: int) -> Path:
        with open_new(folder / RESERVE) as file:
            file.write(bytes(RESERVED))
        return open_npz(folder, plan.count, image_size)

    def open(self, folder: RunFolder, group: Group) -> None:
        task = folder.task
        self._run, self._group, self._task, self._size = folder, group, task, task.identity.image_size
        self._checked, self._restored, self._redrawn = (group.counter() for _ in range(3))  # images
        self._recorder = records.Recorder(task.folder, task.session, group.rank, task.mark)

    @contextmanager
    def writing(self, on_written: OnWritten) -> Iterator[None]:
        place = self._task.folder, self._task.npz, self._size
        with BlockWriter(*place, self.with_png, self._recorder, on_written) as self._writer:
            yield

    def put(self, indices: np.ndarray, pixels: np.ndarray) -> None:
        self._writer.submit(indices, pixels, self._group.heed)

    def mend(self, draw: Redraw) -> None:
        """Compare this rank's share of all images with the records, restore what has a whole copy, and redraw the rest."""
        task, group = self._task, self._group
        group.once(self._merge)
        count = len(task.done)
        first, last = (count * rank // group.world_size for rank in (group.rank, group.rank + 1))
        with opened(task.npz) as npz, progress(count, count, self._checked, "checking", group):
            copies = repair.Copies(task.folder, npz, self._size)
            for start in range(first, last, records.CHUNK):
                self._mend(copies, start, min(start + records.CHUNK, last), draw)
            group.wait()
        group.once(self._merge)

    def _mend(self, copies: repair.Copies, start: int, stop: int, draw: Redraw) -> None:
        def advance(images: int) -> None:
            self._run.check()
            self._checked.add(images)

        rows, older = records.table(self._task.folder, start, stop, self._task.mark), self._task.done[start:stop]
        found = repair.mend(copies, rows, self.with_png, older, advance)
        if found.rows:
            self._recorder.add(np.concatenate(found.rows))
        if restored := len(found.slots) + len(found.pngs):
            self._restored.add(restored)
        if not found.lost:
            return
        wanted = np.zeros(len(self._task.done), dtype=bool)
        wanted[np.array(found.lost) + start] = True
        written: list[np.ndarray] = []
        draw(self._task.plan.starts(~wanted), wanted, written.append)
        self._redrawn.add(len(found.lost))
        for row in np.concatenate(written):
            if copies.in_npz(row) is None:
                raise UserError(f"image {row['index']} is not in {self._task.npz} as it was written; this disk cannot be trusted")

    def _merge(self) -> None:
        task = self._task
        records.merge(task.folder, {task.session: self._group.world_size}, len(task.done), task.mark)

    def _await_records(self) -> None:
        """A network file system may show late what other hosts have added."""
        for _ in range(LATE_SECONDS):
            missing = int((~records.done(self._task.folder, len(self._task.done), {}, self._task.mark)).sum())
            if not missing:
                return
            time.sleep(1)
            self._run.check()
            self._merge()
        raise UserError(f"{missing:,} images are not recorded in {self._task.folder}, though drawn; run the same command again")

    def finish(self, manifest: Manifest) -> str:
        task, count, path = self._task, len(self._task.done), archive.npz_path(self._task.folder)
        self._await_records()
        crcs, pixels_sha256 = records.summary(task.folder, count, task.mark)
        archive.complete(task.npz, path, archive.frame(task.plan.labels, self._size, crcs))
        manifest.npz, manifest.merged = Npz(path.name, count, path.stat().st_size, pixels_sha256), task.session
        last, restored, redrawn = manifest.sessions[-1], self._restored.value, self._redrawn.value
        last.copies_restored, last.images_redrawn = restored, redrawn
        damage = f"; {restored:,} copies restored, {redrawn:,} images redrawn" if restored or redrawn else ""
        return f"{path}: {count:,} images{damage}; "

    def clear(self) -> None:
        (self._task.folder / RESERVE).unlink(missing_ok=True)
        if self._task.session > 1:
            remove_unfinished(self._task.folder)

    def gather(self) -> Path:
        """The npz."""
        return archive.npz_path(self._task.folder)


def open_npz(folder: Path, count: int, image_size: int) -> Path:
    """The npz as it is called now, long enough for all images: whole, or to be continued under another name."""
    whole, part = archive.npz_path(folder), archive.part_path(folder)
    if whole.exists():
        if whole.stat().st_size == archive.size(count, image_size):
            return whole
        os.replace(whole, part)
    with open(open_to_write(part, os.O_RDWR | os.O_CREAT), "r+b") as file:
        file.truncate(archive.slot(count, image_size))
    return part


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor for reading and writing."""
    file = open_to_write(path, os.O_RDWR)
    try:
        yield file
    finally:
        os.close(file)
