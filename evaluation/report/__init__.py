"""Reports: tables for a terminal, and pages of one file each, of results and comparisons."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from fiducial import STDOUT
from fiducial.evaluation.report.comparison import comparison_page
from fiducial.evaluation.report.delivery import deliver
from fiducial.evaluation.report.page import report_page
from fiducial.evaluation.report.tables import comparison_table, result_table
from fiducial.evaluation.results.compare import Comparison
from fiducial.evaluation.results.influences import packed
from fiducial.evaluation.results.result import Result


def write(result: Result, json_file: str | Path | None, html_file: str | Path | None, said: Collection[str] = ()) -> None:
    """Write the files that are asked for, and print the table and where they are; warnings `said` before are not repeated.

    Beside a file of JSON goes that of the influences, which it names.
    """
    json_file, html_file = (path and Path(path) for path in (json_file, html_file))
    data = {}
    if json_file not in (None, STDOUT) and result.moves:
        influences, content = packed(json_file, result.moves)
        result, data = replace(result, influences=influences), {json_file.with_name(influences.file): content}
    deliver(result_table(result, said), {json_file: result.to_json, html_file: lambda: report_page(result)}, data)


def write_comparison(comparison: Comparison, json_file: str | Path | None, html_file: str | Path | None) -> None:
    """The same of results that are compared."""
    json_file, html_file = (path and Path(path) for path in (json_file, html_file))
    deliver(comparison_table(comparison), {json_file: comparison.to_json, html_file: lambda: comparison_page(comparison)})
