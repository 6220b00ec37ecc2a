"""What is known of the run that is open: its entropy curve, and its report."""

from __future__ import annotations

import html

from overture.app.figures_html import told
from overture.app.opened_run import OpenedRun
from overture.runs.directory import RunDirectory

__all__ = ["about_run", "entropy_curve", "report_frame"]

NO_RUN = "These are models alone: no run lies beside them, so nothing was measured here."


def about_run(run: OpenedRun) -> str:
    """What was opened, in a line."""
    config = run.tokenizer.config
    pixels = f"{config.image_size} x {config.image_size} pixels, {'grey' if config.channels == 1 else 'colour'}"
    prior = "" if run.prior else ". It holds no prior, so it makes no new pictures"
    return f"{run.name}: {pixels}, {run.layout}{prior}."


def entropy_curve(run: OpenedRun) -> str:
    """Bits that each token adds, as the run measured them."""
    from overture.report.records import read_records
    from overture.report.svg_figures import entropy_figure

    directory = RunDirectory(run.path)
    if not directory.is_run:
        return told(NO_RUN)
    figure = entropy_figure(read_records([directory]), narrow=True)
    if figure is None:
        return told("The entropy of this run's tokens is not measured yet; overture run goes on with it.")
    return f'<div class="overture-entropy">{figure}</div>'


def report_frame(run: OpenedRun) -> str:
    """The report as it would be written now, in a frame that runs no scripts; nothing is written into the run."""
    from overture.report.page import render
    from overture.report.records import read_records

    directory = RunDirectory(run.path)
    if not directory.is_run:
        return told(NO_RUN)
    page = html.escape(render(read_records([directory]), run.name))
    return (
        f'<iframe class="overture-report" title="Report of {html.escape(run.name)}" sandbox srcdoc="{page}"></iframe>'
    )
