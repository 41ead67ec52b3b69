"""What came out of runs and evaluations: one HTML page, or Markdown. Needs none of the libraries that train."""

from astra_trl.report.markdown import markdown_report
from astra_trl.report.page import write_report

__all__ = ["markdown_report", "write_report"]
