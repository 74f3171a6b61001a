"""Reports: tables for a terminal and for papers, and pages of one file each, of results and comparisons."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fiducial import STDOUT, UserError
from fiducial.evaluation.report import comparison as comparisons
from fiducial.evaluation.report import page
from fiducial.evaluation.report.comparison import Pictures, comparison_page
from fiducial.evaluation.report.delivery import deliver
from fiducial.evaluation.report.page import report_page
from fiducial.evaluation.report.paper import comparison_csv, comparison_latex, result_csv, result_latex
from fiducial.evaluation.report.plots import Plot, drawn
from fiducial.evaluation.report.tables import comparison_table, result_table
from fiducial.evaluation.results.compare import Comparison
from fiducial.evaluation.results.influences import packed
from fiducial.evaluation.results.result import Result


@dataclass(frozen=True)
class Others:
    """Files beside JSON and page: a table in LaTeX, CSV, and a folder of plots, as svg, pdf or png."""

    latex: str | Path | None = None
    csv: str | Path | None = None
    plots: str | Path | None = None
    plot_format: str = "svg"

    def files(self, latex: Callable[[], str], csv: Callable[[], str], plots: Callable[[], Mapping[str, Plot]]) -> dict:
        """The files to be written by path, each with the function that makes its content.

        Raises:
            UserError: if the folder of plots cannot be made.
        """
        found: dict[Path | None, Callable[[], str | bytes]] = {
            path and Path(path): make for path, make in ((self.latex, latex), (self.csv, csv))
        }
        if self.plots is not None:
            folder = Path(self.plots)
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise UserError(f"{folder} cannot be made ({error.strerror})") from error
            found |= {
                folder / f"{name}.{self.plot_format}": partial(drawn, one.figure, self.plot_format, name)
                for name, one in plots().items()
            }
        return found


def write(
    result: Result,
    json_file: str | Path | None,
    html_file: str | Path | None,
    said: Collection[str] = (),
    others: Others = Others(),
) -> None:
    """Write the files that are asked for, and print the table and where they are; warnings `said` before are not repeated.

    Beside a file of JSON goes that of the influences, which it names.

    Raises:
        UserError: if one cannot be written.
    """
    json_file, html_file = (path and Path(path) for path in (json_file, html_file))
    data = {}
    if json_file not in (None, STDOUT) and result.moves:
        influences, content = packed(json_file, result.moves)
        result, data = replace(result, influences=influences), {json_file.with_name(influences.file): content}
    files = {json_file: result.to_json, html_file: lambda: report_page(result)}
    files |= others.files(partial(result_latex, result), partial(result_csv, result), partial(page.plots_of, result))
    deliver(result_table(result, said), files, data)


def write_comparison(
    comparison: Comparison,
    json_file: str | Path | None,
    html_file: str | Path | None,
    pictures: Pictures | None = None,
    others: Others = Others(),
) -> None:
    """The same of results that are compared; `pictures` are of the same indices of each run."""
    json_file, html_file = (path and Path(path) for path in (json_file, html_file))
    files = {json_file: comparison.to_json, html_file: lambda: comparison_page(comparison, pictures)}
    files |= others.files(
        partial(comparison_latex, comparison), partial(comparison_csv, comparison), partial(comparisons.plots_of, comparison)
    )
    deliver(comparison_table(comparison), files)


__all__ = ["Others", "comparison_page", "comparison_table", "report_page", "result_table", "write", "write_comparison"]
