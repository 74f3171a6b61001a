"""Results for a paper: a table in LaTeX (booktabs) with a comment that states the protocol, and CSV."""

import csv
import io
from collections.abc import Iterable, Sequence

from fiducial import described, printable
from fiducial.evaluation.metrics import METRICS
from fiducial.evaluation.results.compare import Comparison
from fiducial.evaluation.results.judging import best, on_many, verdicts
from fiducial.evaluation.results.result import Result
from fiducial.evaluation.results.summary import sentence, setting
from fiducial.evaluation.results.wording import between, number

SPECIAL = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    },
    **{"|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "·": r"$\cdot$", "∞": r"$\infty$"},
}
OF_A_RESULT = ("metric", "label", "value", "error", "low", "high", "spread", "unit", "n", "reference_n", "protocol", "published")
OF_A_ROW = ("run", "metric", "label", "value", "error", "low", "high", "unit", "seeds")
OF_A_DIFFERENCE = ("base", "difference", "difference_low", "difference_high", "relative", "verdict")


def result_latex(result: Result) -> str:
    """A row of all numbers with their intervals, and one of the published row's where there is one."""
    beside = {one.key: one.published for one in result.published.lines} if result.published else {}
    cells = [latex_cell(number(m.value, m.unit, m.low, m.high), between(m.low, m.high, m.unit)) for m in result.metrics.values()]
    rows = [(escaped(setting(result)), cells)]
    rows += [(escaped(f"published: {result.published.name}"), [beside.get(key, "") for key in result.metrics])] if beside else []
    heads = [latex_head(m.label, m.name) for m in result.metrics.values()]
    return tabular([sentence(result)], heads, rows)


def comparison_latex(comparison: Comparison) -> str:
    """A row a run, the best of each column bold."""
    winners = {key: best(comparison, key) for key in comparison.labels}
    rows = []
    for row in comparison.rows:
        found = [(key, row.cells.get(key)) for key in comparison.labels]
        rows.append((escaped(row.title), [latex_cell(*cell.shown(), winners[key] is row) if cell else "" for key, cell in found]))
    names = {key: cell.name for row in comparison.rows for key, cell in row.cells.items()}
    basis = "; ".join(f"{name} {value}" for name, value in comparison.basis.items() if value is not None)
    said = [f"All by {described(comparison.fiducial)}, and of the same: {basis}.", on_many(comparison)]
    return tabular(said, [latex_head(label, names[key]) for key, label in comparison.labels.items()], rows)


def result_csv(result: Result) -> str:
    """A line a metric; values as they are in JSON, unrounded."""
    beside = {one.key: one.published for one in result.published.lines} if result.published else {}
    return csv_text(
        OF_A_RESULT,
        (
            (key, m.label, m.value, m.error, m.low, m.high, m.spread, m.unit, m.n, m.reference_n, m.protocol, beside.get(key))
            for key, m in result.metrics.items()
        ),
    )


def comparison_csv(comparison: Comparison) -> str:
    """A line a run and metric, with its difference from the base."""
    known, base = verdicts(comparison), comparison.rows[0].name
    apart = {(one.row, one.key): one for one in comparison.differences}

    def lines() -> Iterable[Sequence[object]]:
        for row in comparison.rows:
            for key, cell in row.cells.items():
                seeds = " ".join(map(str, row.seeds))
                line = [row.name, key, cell.label, cell.value, cell.error, cell.low, cell.high, cell.unit, seeds]
                if one := apart.get((row.name, key)):
                    line += [base, one.difference, one.low, one.high, one.relative, known[row.name, key]]
                yield [*line, *[None] * (len(OF_A_ROW) + len(OF_A_DIFFERENCE) - len(line))]

    return csv_text((*OF_A_ROW, *OF_A_DIFFERENCE), lines())


def escaped(text: str) -> str:
    """A text as LaTeX sets it."""
    return "".join(SPECIAL.get(sign, sign) for sign in printable(text))


def latex_cell(value: str, interval: str, is_best: bool = False) -> str:
    shown = rf"\textbf{{{escaped(value)}}}" if is_best else escaped(value)
    return shown + (rf" {{\scriptsize ({escaped(interval)})}}" if interval else "")


def latex_head(label: str, metric: str) -> str:
    return escaped(label) + (r" $\downarrow$" if METRICS[metric].less_is_better else r" $\uparrow$")


def tabular(said: Iterable[str], heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table for booktabs, below what is said in comments."""
    lines = [f"% {' '.join(text.split())}" for text in said if text]
    lines += [rf"\begin{{tabular}}{{l{'c' * len(heads)}}}", r"\toprule", rf" & {' & '.join(heads)} \\", r"\midrule"]
    lines += [rf"{' & '.join([name, *cells])} \\" for name, cells in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv_text(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if value is None else value for value in line] for line in lines)
    return buffer.getvalue()
