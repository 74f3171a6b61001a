"""A sweep's folder: sweep.json with what it is of and what was decided, its runs, and the results of each round."""

import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

from fiducial import UserError, about, make_folder, read_json, write_whole
from fiducial.evaluation.results.reading import Known, find_result, read_result
from fiducial.studies.sweeps.deciding import Decision, Pools, decide, quantile_of
from fiducial.studies.sweeps.specification import Configuration, Specification, run_of

FORMAT = "fiducial-sweep-1"
LARGEST = 1 << 26  # bytes of sweep.json
NAMES = {"count": "--num-fid-samples", "options": "the options of all runs"}


class Sweep:
    """A sweep as it is in `folder`; what was decided is never decided anew."""

    def __init__(self, folder: Path, spec: Specification, rounds: list[dict] | None = None):
        self.folder, self.spec, self.rounds = folder, spec, rounds or []
        self.configurations = {one.key: one for one in spec.configurations}
        self._known: dict[Path, Known] = {}  # results that were read: kept ones do not change

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def is_done(self) -> bool:
        return bool(self.rounds) and self.rounds[-1]["count"] == self.spec.count

    @property
    def living(self) -> list[Configuration]:
        """Those that no round has dropped."""
        gone = {key for one in self.rounds for key in one["dropped"]}
        return [one for key, one in self.configurations.items() if key not in gone]

    @property
    def count(self) -> int:
        """Images of a run in the round that comes next; where one configuration is left, all of them."""
        if not self.rounds or len(self.living) > 1:
            return self.spec.sizes[len(self.rounds)]
        return self.spec.count

    @property
    def quantile(self) -> float:
        return quantile_of(len(self.configurations), len(self.spec.sizes) - 1)

    @property
    def jobs(self) -> list[tuple[Configuration, int]]:
        """Configurations and seeds that the next round draws, always in the same order."""
        return [(one, seed) for one in self.living for seed in self.spec.seeds]

    def drawn(self) -> int:
        """Images that the rounds decided so far have drawn."""
        last = {key: one["count"] for one in self.rounds for key in one["values"]}
        return sum(last.values()) * len(self.spec.seeds)

    def result(self, one: Configuration, seed: int, count: int) -> Path:
        """Where the result of a run of so many images is kept."""
        return self.folder / "rounds" / str(count) / f"{run_of(one, seed)}.json"

    def pending(self) -> list[int]:
        """Places among `jobs` of those without result."""
        return [place for place, job in enumerate(self.jobs) if not self.result(*job, self.count).is_file()]

    def arguments(self, place: int) -> list[str]:
        """Of `fiducial sample`, for one of `jobs`."""
        return self.spec.arguments(*self.jobs[place], self.count, self.runs)

    def keep(self, place: int) -> None:
        """Copy the result of a run that has been drawn, which its growth in the next round replaces.

        Raises:
            UserError: if there is none of as many images.
        """
        one, seed = self.jobs[place]
        found, kept = find_result(self.runs / run_of(one, seed)), self.result(one, seed, self.count)
        known = read_result(found)
        if known.basis["N"] != self.count:
            raise UserError(f"{found}: is of {known.basis['N']:,} images, not of {self.count:,}; run the sweep again")
        make_folder(kept.parent)
        if known.influences:
            influences = found.with_name(Path(known.influences.file).name)
            if influences.is_file():
                write_whole(kept.with_name(influences.name), partial(shutil.copyfile, influences))
        write_whole(kept, partial(shutil.copyfile, found))  # last: it says that the run is done

    def pools(self, count: int, keys: list[str]) -> Pools:
        """The results of a round by configuration."""
        return {key: [self._read(self.configurations[key], seed, count) for seed in self.spec.seeds] for key in keys}

    def _read(self, one: Configuration, seed: int, count: int) -> Known:
        path = self.result(one, seed, count)
        if path not in self._known:
            self._known[path] = read_result(path)
        return self._known[path]

    def decide(self) -> Decision:
        """End the round: what is decided to be worse is dropped, but in the last, which drops nothing; and write it down."""
        count, keys = self.count, [one.key for one in self.living]
        decision = decide(self.pools(count, keys), self.spec.metric, self.quantile)
        gaps = {key: asdict(gap) for key, gap in decision.gaps.items()}
        dropped = decision.dropped if count < self.spec.count else []
        self.rounds.append({"count": count, "values": keys, "best": decision.best, "gaps": gaps, "dropped": dropped})
        self.write()
        return decision

    def write(self) -> None:
        data = {"format": FORMAT, "specification": self.spec.to_json(), "rounds": self.rounds, "fiducial": about()}
        text = json.dumps(data, indent=1) + "\n"
        write_whole(self.folder / "sweep.json", lambda path: path.write_text(text))


def opened(folder: Path, spec: Specification | None) -> Sweep:
    """The sweep in a folder, or a new one of `spec`, which nothing is written of.

    Raises:
        UserError: if there is one of another specification, or none where `spec` is None.
    """
    file = folder / "sweep.json"
    if not file.exists():
        if spec is None:
            raise UserError(f"--out {folder}: there is no sweep.json; give --over, --seeds and --ref to begin one")
        return Sweep(folder, spec)
    try:
        data = read_json(file, LARGEST)
        if data["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        old, rounds = Specification.from_json(data["specification"]), data["rounds"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no sweep of Fiducial's ({error})") from error
    if spec and (differs := [name for name, value in spec.to_json().items() if old.to_json()[name] != value]):
        name = NAMES.get(differs[0], f"--{differs[0]}")
        there, here = old.to_json()[differs[0]], spec.to_json()[differs[0]]
        raise UserError(f"--out {folder}: another sweep is there, whose {name} is {there} and not {here}; name another folder")
    return Sweep(folder, old, rounds)
