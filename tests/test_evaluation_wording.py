"""Numbers are written to as many digits as their intervals mean."""

import pytest
from made_results import Page, made

from fiducial.evaluation.report import report_page, result_table
from fiducial.evaluation.results.wording import between, number, signed

WRITTEN = [  # value, low, high, unit, as a value, as an interval
    (0.000351234, 0.00029, 0.00041, "", "0.000351", "0.000290 to 0.000410"),
    (-0.0000123, -0.0000923, 0.0000677, "", "-0.000012", "-0.000092 to 0.000068"),
    (1.57312, 1.2701, 1.8821, "", "1.57", "1.27 to 1.88"),
    (2.271234, 2.2613, 2.2814, "", "2.2712", "2.2613 to 2.2814"),
    (278.2391, 272.1, 284.4, "", "278.24", "272.10 to 284.40"),  # at least two decimals, as in tables of papers
    (0.82651, 0.8231, 0.8299, "", "0.8265", "0.8231 to 0.8299"),
    (66.812, 64.61, 68.99, "%", "66.8 %", "64.6 to 69.0 %"),
    (99.98765, 99.98, 99.99, "%", "99.9877 %", "99.9800 to 99.9900 %"),
    (0.000351234, None, None, "", "0.0003512", ""),
    (23.45678, None, None, "", "23.4568", ""),
    (0.0, None, None, "", "0.0000", ""),
    (2.0, 2.0, 2.0, "", "2.0000", "2.0000 to 2.0000"),
    (1.0, 1 - 1e-300, 1 + 3e-16, "", "1.000000000000", "1.000000000000 to 1.000000000000"),
    (33.33333, None, None, "%", "33.3 %", ""),
]


@pytest.mark.parametrize(("value", "low", "high", "unit", "alone", "interval"), WRITTEN)
def test_digits_are_those_that_mean_something(value, low, high, unit, alone, interval):
    assert number(value, unit, low, high) == alone
    assert between(low, high, unit) == interval
    assert signed(abs(value), unit, low, high) == f"+{alone.removeprefix('-')}"


def test_a_small_number_is_one_in_table_and_page():
    result = made({"kid": (0.000351234, 0.00003)})
    assert "KID     0.000351  0.000291 to 0.000411" in result_table(result)
    page = Page(report_page(result))
    assert page.tables["numbers"][1][:3] == ["KID", "0.000351", "0.000291 to 0.000411"]
    assert page.texts["title"] == ["KID 0.000351: DiT-XL/2, cfg 1.5, 1,000 samples"]
