"""The report: one self-contained HTML page about a run, or about several runs side by side."""

from __future__ import annotations

from overture.report.page import write_report

__all__ = ["write_report"]
