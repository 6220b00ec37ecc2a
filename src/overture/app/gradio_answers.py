"""How the page's events reach the functions behind them: one at a time, errors in one line."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from overture.app.figures_html import marks_of
from overture.app.opened_run import OpenedRun
from overture.errors import OvertureError, error_line
from overture.last_resort import as_line

__all__ = ["answer", "first_tokens_slider"]


def answer(
    event: Callable[..., Any], function: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """Let ``function`` answer an event. What it raises is one line in the page."""

    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except Exception as error:
            raise in_page(error) from error

    _listen(event, call, inputs, outputs, "minimal")


def answer_step_by_step(
    event: Callable[..., Any], function: Callable[..., Iterator[Any]], inputs: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """As :func:`answer`, of a function that gives answers one after the other, each shown as it comes."""

    def call(*values: Any) -> Iterator[Any]:
        try:
            yield from function(*values)
        except Exception as error:
            raise in_page(error) from error

    _listen(event, call, inputs, outputs, "hidden")


def _listen(
    event: Callable[..., Any], call: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], progress: str
) -> None:
    """One answer at a time, for the models are shared; no address of the server calls it by name."""
    event(
        call, list(inputs), list(outputs), api_visibility="private", concurrency_id="models", concurrency_limit=1,
        show_progress=progress,
    )  # fmt: skip


def in_page(error: Exception) -> gr.Error:
    """One line for the page. What nobody foresaw is told where the server runs: it may hold names of files there."""
    if isinstance(error, OvertureError):
        words = error_line(error)
    else:
        print(f"overture app: {error_line(as_line(error))}", file=sys.stderr)
        words = "something went wrong here that nobody foresaw; the terminal of overture app says what"
    return gr.Error(html.escape(words), duration=15, print_exception=False)


def first_tokens_slider(run: OpenedRun, label: str) -> gr.Slider:
    """How many first tokens, with a button for every mark: the ends of the segments."""
    marks = marks_of(run)
    start = marks[1][1] if len(run.layout.segments) > 1 else run.layout.length // 2
    slider = gr.Slider(0, run.layout.length, value=start, step=1, label=label)
    with gr.Row(elem_classes="overture-marks"):
        for words, number in marks:
            button = gr.Button(f"{number}: {words}", size="sm")
            button.click(None, None, slider, js=f"() => {number}", api_visibility="private")
    return slider
