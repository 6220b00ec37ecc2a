"""The page: Gradio's controls before the plain functions of this room.

Pictures come as addresses that hold their bytes (``data:``), so the server keeps and serves no files for them.
"""

from __future__ import annotations

import functools
from pathlib import Path

import gradio as gr

from overture.app.figures_html import told
from overture.app.gradio_answers import answer
from overture.app.gradio_tabs import blend_tab, generate_tab, tokens_tab
from overture.app.opened_run import OpenedRun
from overture.app.run_facts import about_run, entropy_curve, report_frame

__all__ = ["STYLE", "build_page"]

STYLE = Path(__file__).parent / "page_style.css"
UPLOADS_KEPT = (600, 600)
"""Seconds between two looks at what was uploaded, and of age from which it is deleted."""


def build_page(run: OpenedRun) -> gr.Blocks:
    """The page of one run. Where it holds no prior, only the tabs that need none."""
    with gr.Blocks(title=f"Overture: {run.name}", analytics_enabled=False, delete_cache=UPLOADS_KEPT) as page:
        gr.HTML(f"<h1>Overture</h1>{told(about_run(run))}")
        drawn = gr.State(None)
        with gr.Tabs():
            if run.prior is not None:
                with gr.Tab("Generate"):
                    generate_tab(run, drawn)
            with gr.Tab("Tokens"):
                tokens_tab(run, drawn)
            with gr.Tab("Blend"):
                blend_tab(run, drawn)
            with gr.Tab("Run") as tab:
                _run_tab(run, tab)
    return page


def _run_tab(run: OpenedRun, tab: gr.Tab) -> None:
    curve = gr.HTML(label="Entropy curve")
    show = gr.Button("Show the report")
    frame = gr.HTML(label="Report")
    answer(tab.select, functools.partial(entropy_curve, run), [], [curve])
    answer(show.click, functools.partial(report_frame, run), [], [frame])
