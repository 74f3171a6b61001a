"""The identity by which a run is recognised. No torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

FINGERPRINT_LETTERS = 8  # at the end of a run's name


def fingerprint(values: Mapping) -> str:
    """SHA-256 of an identity's values, independent of the order of its fields."""
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Identity:
    """All that images depend on beside their index: options, what `auto` came to, and the hashes of files, by name.

    Which names there are depends on what draws the images; those that are properties here every run has.
    """

    values: Mapping[str, object]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.values)

    @property
    def image_size(self) -> int:
        return self.values["image_size"]

    @property
    def num_classes(self) -> int:
        return self.values["num_classes"]

    @property
    def global_seed(self) -> int:
        return self.values["global_seed"]

    @property
    def labels(self) -> str:
        """As `--labels`, without names."""
        return self.values["labels"]

    @property
    def block_size(self) -> int:
        """Images that are drawn together, counted from index 0."""
        return self.values["per_proc_batch_size"]

    def differing(self, other: "Identity") -> list[str]:
        """The names of what differs, sorted."""
        return [name for name in sorted({*self.values, *other.values}) if self.values.get(name) != other.values.get(name)]
