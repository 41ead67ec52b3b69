"""Reports on runs and evaluations: one HTML page, or Markdown. They need no library that trains."""

from astra_trl.report.markdown import markdown_report, write_markdown_report
from astra_trl.report.page import write_report

__all__ = ["markdown_report", "write_markdown_report", "write_report"]
