"""Places of published files: an address, a file of the Hugging Face hub, or a page from which a person fetches it.

Options take `published:NAME`, a file of `catalogue.PLACES`, and `hf:OWNER/NAME/FILE`, any file of the hub. No torch.
"""

import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fiducial import CHECKPOINTS, UserError, default_cache, download, no_file
from fiducial.models.checkpoints import hub

PUBLISHED, HUB = "published:", "hf:"  # how an option begins that says a place


class Place(Protocol):
    """Where a published file is."""

    name: str  # what follows `published:`

    @property
    def said(self) -> str:
        """The place in words, after "from"."""

    def path(self, cache_dir: Path | None) -> Path:
        """Where the file is kept, whether it is there or not; of the hub's, its repository's folder until it is."""

    def is_there(self, cache_dir: Path | None) -> bool:
        """Whether it is kept already."""

    def find(self, option: str, cache_dir: Path | None) -> Path:
        """The local path, fetched if it has to be.

        Args:
            option: which asks for it, for the error.

        Raises:
            UserError: if it cannot be had.
        """


class InCache:
    """The common part of places whose files are kept in Fiducial's own cache, under `kept`."""

    kept: str

    def path(self, cache_dir: Path | None) -> Path:
        return (cache_dir or default_cache()) / CHECKPOINTS / self.kept

    def is_there(self, cache_dir: Path | None) -> bool:
        return not no_file(self.path(cache_dir))


@dataclass(frozen=True)
class Url(InCache):
    """A file that a request brings. Without a name of its own, it is kept under the last part of the address's path."""

    name: str
    url: str
    own_name: str | None = None  # where that part says too little

    @property
    def kept(self) -> str:
        return self.own_name or urllib.parse.unquote(urllib.parse.urlsplit(self.url).path.rsplit("/", 1)[1])

    @property
    def said(self) -> str:
        return self.url

    def find(self, option: str, cache_dir: Path | None) -> Path:
        try:
            return download(self.url, self.path(cache_dir))
        except UserError as error:
            raise UserError(f"{error}, or give it as {option}") from error


@dataclass(frozen=True)
class HubFile:
    """One file of a repository of the hub, kept by the hub's client in its cache."""

    name: str
    repository: str
    file: str  # its path there
    revision: str | None = None  # None: main

    @property
    def said(self) -> str:
        return f"https://huggingface.co/{self.repository}/blob/{self.revision or 'main'}/{self.file}"

    def path(self, cache_dir: Path | None) -> Path:
        found = hub.cached(self.repository, self.file, cache_dir, self.revision)
        return found or hub.kept_at(self.repository, cache_dir)

    def is_there(self, cache_dir: Path | None) -> bool:
        return hub.cached(self.repository, self.file, cache_dir, self.revision) is not None

    def find(self, option: str, cache_dir: Path | None) -> Path:
        return hub.file(self.repository, self.file, option, cache_dir, self.revision)


@dataclass(frozen=True)
class Page(InCache):
    """A file that only a person can fetch from where its makers have it, and then put into the cache."""

    name: str
    page: str
    kept: str
    file: str | None = None  # what it is called there; None: its place is not known to us
    why: str = "no program can fetch it"  # that it takes a person

    @property
    def said(self) -> str:
        if self.file is None:
            return f"a place that is not known to us; see {self.page}"
        return f"{self.page} ({self.file}), by hand, as {self.why}"

    def find(self, option: str, cache_dir: Path | None) -> Path:
        if self.is_there(cache_dir):
            return self.path(cache_dir)
        where = f"{self.page} may say where" if self.file is None else f"fetch {self.file} by hand from {self.page}"
        reason = "where its makers have it is not known to us" if self.file is None else self.why
        raise UserError(
            f"{option} is missing: {self.name} is a published file, but {reason}; {where}, and put it at "
            f"{self.path(cache_dir)}, or give it as {option}"
        )


def hub_file(text: str) -> HubFile:
    """The file that `hf:OWNER/NAME/FILE` or `hf:OWNER/NAME@REVISION/FILE` says.

    Raises:
        UserError: if it is not of that form.
    """
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?/([\w.][^\s?#]*)", text.removeprefix(HUB))
    if not found or not hub.is_hub_id(found[1]) or ".." in found[3].split("/"):
        raise UserError(f"{text}: must be {HUB}OWNER/NAME/FILE, a file of the Hugging Face hub, such as {HUB}owner/name/model.pt")
    return HubFile(text.removeprefix(HUB), found[1], found[3], found[2])
