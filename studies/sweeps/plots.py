"""Plots of a sweep, for each round: the metric against the number that varies, FID against IS, precision against recall."""

from dataclasses import replace

from fiducial.evaluation.metrics import METRICS
from fiducial.evaluation.report.plots import MARKERS, Bar, Plot, dots_figure, frontier_figure, lines_figure
from fiducial.evaluation.results.compare import Cell
from fiducial.studies.sweeps.deciding import cells_of
from fiducial.studies.sweeps.specification import Configuration
from fiducial.studies.sweeps.state import Sweep

FIRST = "cfg-scale"
FRONTIERS = (("is", "fid"), ("recall", "precision"))  # x and y


def plots_of(sweep: Sweep) -> dict[str, Plot]:
    """By their names; points of different rounds are never in one, as their numbers are of another count of images."""
    found = {}
    for place, one in enumerate(sweep.rounds):
        cells = cells_of(sweep.pools(one["count"], one["values"]))
        by_name = {key: {cell.name: cell for cell in cells[key].values()} for key in cells}
        said, hollow = f"round {place + 1}, {one['count']:,} images", [sweep.configurations[key].name for key in one["dropped"]]
        metric = sweep.spec.metric
        label = _labelled(next(iter(by_name.values()))[metric])
        if along := _axis(sweep, one["values"]):
            series = {
                called: [(_number(each.values[along]), _bar(each, by_name[each.key][metric])) for each in points]
                for called, points in _series(sweep, one["values"], along).items()
            }
            figure, title = lines_figure(series, along, label, hollow), f"{label} against {along}, {said}"
        else:
            bars = [_bar(sweep.configurations[key], by_name[key][metric]) for key in one["values"]]
            bars = [replace(bar, name=f"dropped: {bar.name}") if bar.name in hollow else bar for bar in bars]
            figure, title = dots_figure(bars, label), f"{label}, {said}"
        found[f"round-{place + 1}-{metric}"] = Plot(figure, title)
        for x, y in FRONTIERS:
            if all({x, y} <= cells.keys() for cells in by_name.values()):
                series = {
                    called: [tuple(_bar(each, by_name[each.key][name]) for name in (x, y)) for each in points]
                    for called, points in _series(sweep, one["values"], along).items()
                }
                names = tuple(_labelled(next(iter(by_name.values()))[name]) for name in (x, y))
                title = f"{names[1]} against {names[0]}, {said}"
                found[f"round-{place + 1}-{x}-{y}"] = Plot(frontier_figure(series, names, hollow), title)
    return found


def _axis(sweep: Sweep, keys: list[str]) -> str | None:
    """The option whose values are numbers, of which `keys` have several, guidance's scale before others; None without one, or of
    too many series."""
    had = {name: {sweep.configurations[key].values[name] for key in keys} for name in sweep.spec.over}
    numeric = [name for name, values in had.items() if len(values) > 1 and all(_number(value) is not None for value in values)]
    found = FIRST if FIRST in numeric else next(iter(numeric), None)
    return found if found and len(_series(sweep, keys, found)) <= len(MARKERS) else None


def _series(sweep: Sweep, keys: list[str], along: str | None) -> dict[str, list[Configuration]]:
    """Configurations that differ by `along` alone, ascending; without that, all of them as one."""
    found: dict[str, list[Configuration]] = {}
    for key in keys:
        one = sweep.configurations[key]
        others = ", ".join(f"{name} {value}" for name, value in one.values.items() if name != along) if along else ""
        found.setdefault(others, []).append(one)
    return (
        {name: sorted(points, key=lambda one: _number(one.values[along])) for name, points in found.items()} if along else found
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bar(one: Configuration, cell: Cell) -> Bar:
    return Bar(one.name, cell.value, cell.low, cell.high)


def _labelled(cell: Cell) -> str:
    return f"{cell.label} {'↓' if METRICS[cell.name].less_is_better else '↑'}"
