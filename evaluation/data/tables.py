"""Images in the tables of Hugging Face datasets: folders of `save_to_disk`, and parquet shards as the hub has them."""

import bisect
import importlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fiducial import UserError, one_line, require_file
from fiducial.evaluation.data.folders import files_in
from fiducial.evaluation.data.image_files import is_hidden

SAVED, SAVED_SPLITS = ("state.json", "dataset_info.json"), "dataset_dict.json"  # files of save_to_disk
PARQUET = ".parquet"
SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]{16})?")  # a file's name as the hub has it
ROWS = 64  # of a parquet file in memory at once
NO_LABEL = -1  # datasets' own, for test sets whose labels are kept back


@dataclass(frozen=True)
class Table:
    """Encoded images, a row each, in the order of the files: `files` in parts of `counts` rows, out of one column.

    `tables` are datasets' memory-mapped table, or parquet files; `class_names` are what it calls its labels, if it has any.
    """

    files: tuple[Path, ...]
    column: str
    tables: tuple[Any, ...]
    counts: tuple[int, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...]

    @property
    def count(self) -> int:
        return sum(self.counts)

    def encoded(self, ranges: list[tuple[int, int]]) -> Iterator[list[bytes]]:
        """The image files in each range of rows; the ranges ascend.

        Raises:
            ValueError: if a row has no bytes.
            OSError: if a file is damaged.
        """
        rows, position = iter(()), 0
        for first, last in ranges:
            if first != position or position == 0:
                rows = self._rows(first)
            position = last
            batch = list(itertools.islice(rows, last - first))
            for index, data in enumerate(batch, start=first):
                if not data:
                    raise ValueError(f"row {index} has no image in it, at most a path")
            yield batch

    def _rows(self, start: int) -> Iterator[bytes | None]:
        """The image files from row `start` on."""
        ends = list(itertools.accumulate(self.counts))
        part = bisect.bisect_right(ends, start)
        skipped = start - (ends[part - 1] if part else 0)
        for table in self.tables[part:]:
            yield from (_parquet_rows if hasattr(table, "iter_batches") else _arrow_rows)(table, self.column, skipped)
            skipped = 0


def _arrow_rows(table: Any, column: str, start: int) -> Iterator[bytes | None]:
    """Rows of a memory-mapped table (`pyarrow.Table`), one at a time."""
    for first in range(start, table.num_rows, ROWS):
        for row in table[column].slice(first, ROWS):
            yield row["bytes"].as_py() if row.is_valid else None


def _parquet_rows(file: Any, column: str, start: int) -> Iterator[bytes | None]:
    """Rows of a `pyarrow.parquet.ParquetFile`, from the row group on in which the first is."""
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    ends = list(itertools.accumulate(sizes))
    group = bisect.bisect_right(ends, start)
    skipped = start - (ends[group - 1] if group else 0)
    for batch in file.iter_batches(ROWS, list(range(group, len(sizes))), columns=[column]):
        here = min(skipped, batch.num_rows)
        skipped -= here
        for row in batch.column(0).slice(here):
            yield row["bytes"].as_py() if row.is_valid else None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` made this folder."""
    return (folder / SAVED_SPLITS).is_file() or all((folder / name).is_file() for name in SAVED)


def find_table(path: Path) -> Table | None:
    """The table in a parquet file, in a folder that `save_to_disk` made, or in one with parquet files; None if it has none.

    Raises:
        UserError: if it holds several splits or columns of images, or is not whole, or the library is missing.
    """
    if path.is_dir() and is_saved(path):
        return _open_saved(path)
    shards = [path] if path.is_file() else parquet_in(path)
    return _open_parquet(shards, path) if shards else None


def parquet_in(folder: Path) -> list[Path]:
    """The parquet files in a folder and its subfolders, but for hidden ones, which the hub's client leaves."""
    shown = (folder / name for name in files_in(folder) if name.endswith(PARQUET) and not is_hidden(name))
    return sorted((path for path in shown if path.is_file()), key=lambda path: path.parts)


def _open_saved(folder: Path) -> Table:
    if (folder / SAVED_SPLITS).is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{SAVED[0]}"))
        raise UserError(f"{folder} holds the splits of a dataset; give the folder of one: {', '.join(splits)}")
    datasets = _library("datasets", folder)
    try:
        for path in folder.iterdir():
            if not path.is_dir():
                require_file(path)  # the library would wait for a pipe
        found = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except Exception as error:  # the library's own, pyarrow's and those of damaged JSON
        raise UserError(f"{folder} is not a whole folder of save_to_disk ({one_line(error)})") from error
    if found._indices is not None:
        raise UserError(f"{folder} is a view of another dataset; save flatten_indices() of it")
    column = _image_column(datasets, found.features, folder)
    files, table = tuple(Path(file["filename"]) for file in found.cache_files), found.data.table
    return Table(files, column, (table,), (len(found),), *_labels(datasets, found.features, [table]))


def _open_parquet(shards: list[Path], source: Path) -> Table:
    """The table in parquet files of one split.

    Raises:
        UserError: if they are of several, or one is missing or damaged.
    """
    _check_shards(shards, source)
    datasets, parquet = _library("datasets", source), _library("pyarrow.parquet", source)
    try:
        files = [parquet.ParquetFile(path, memory_map=True, pre_buffer=False) for path in shards]
        features = datasets.Features.from_arrow_schema(files[0].schema_arrow)
        column = _image_column(datasets, features, source)
        labels = _labels(datasets, features, files)
        counts = tuple(file.metadata.num_rows for file in files)
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's are of these kinds
        raise UserError(f"{source} does not hold whole parquet files of one dataset ({one_line(error)})") from error
    return Table(tuple(shards), column, tuple(files), counts, *labels)


def _check_shards(shards: list[Path], source: Path) -> None:
    """Raise UserError if these are not all shards of one split."""
    found = {path: SHARD.fullmatch(path.stem) for path in shards}

    def split(path: Path) -> Path:
        """The split that a file is of; the hub's own conversion numbers the files of a split, each in a folder."""
        match = found[path]
        return path.parent / match["split"] if match else path.parent if path.stem.isdigit() else path.with_suffix("")

    splits = sorted({str(split(path)) for path in shards})
    if len(splits) > 1:
        raise UserError(
            f"{source} holds parquet files of several splits ({', '.join(splits[:5])}); "
            "give a folder with those of one, for which links will do"
        )
    if (match := found[shards[0]]) and source.is_dir() and len(shards) != int(match["count"]):
        raise UserError(f"{source} holds {len(shards)} of the {int(match['count'])} parquet files of {splits[0]}; fetch the rest")


def _image_column(datasets: ModuleType, features: Any, source: Path) -> str:
    """The name of the one column of images: by its declared type, or a structure of bytes and path.

    Raises:
        UserError: if there is none, or several.
    """
    found = [
        name
        for name, kind in features.items()
        if isinstance(kind, datasets.Image) or (isinstance(kind, dict) and set(kind) == {"bytes", "path"})
    ]
    if len(found) != 1:
        said = f"several columns of images, {', '.join(found)}" if found else f"no column of images among {', '.join(features)}"
        raise UserError(f"{source} has {said}; keep one, such as by select_columns and save_to_disk of the datasets library")
    return found[0]


def _labels(datasets: ModuleType, features: Any, tables: list[Any]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """(N,) int64 from the one column of class labels, and their names; None if there is none, or several, or labels are kept
    back."""
    columns = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(columns) != 1:
        return None, ()
    parts = [table.read(columns).column(0) if hasattr(table, "read") else table[columns[0]] for table in tables]
    if any(part.null_count for part in parts):
        return None, ()
    labels = np.concatenate([part.to_numpy() for part in parts]).astype(np.int64)
    return (None, ()) if (labels == NO_LABEL).any() else (labels, tuple(features[columns[0]].names))


def _library(name: str, source: Path) -> ModuleType:
    """An optional library.

    Raises:
        UserError: if it is not there.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{source} is a Hugging Face dataset, which the datasets library reads: pip install datasets") from error
