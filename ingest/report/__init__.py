"""The page about a shard set: `render_report(ReportInput(...))` gives report.html as text."""

from ingest.report.page import ReportInput, render_report

__all__ = ["ReportInput", "render_report"]
