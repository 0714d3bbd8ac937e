"""One HTML page that says what a fitted model is, what was measured of it and what it is not good for."""

from skbegan.report.writing import write_report

__all__ = ["write_report"]
