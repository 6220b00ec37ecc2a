"""Who may reach the page, and how much they may send. No file of the server can be asked for.

A Space of the hub is an ``app.py`` of two lines: ``from overture.app.gradio_server import serve`` and
``serve("hf:owner/name", host="0.0.0.0")``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.app.opened_run import OpenedRun
from overture.app.uploads import MAX_BYTES
from overture.errors import OvertureError, missing_package

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["LOOPBACK", "FilesRefused", "launch", "serve"]

LOOPBACK = "127.0.0.1"
WAITING = 8
"""Requests that may wait; the next one is told that the queue is full."""
FILES = re.compile(r"/(file|proxy)(=|/)|/(stream|monitoring|custom_component|deep_link|run-history)(/|$)")
"""Gradio's addresses that lead to files, or to other servers. The page uses none of them."""
ADDRESS = re.compile(r"\s*\w[\w+.-]*://")


class FilesRefused:
    """An ASGI application in front of the page's that answers 403 where a file is asked for, or where a request names an
    address as its file: Gradio would fetch it. What is sent as JSON may have as many bytes as an upload (else 413)."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif FILES.search(scope["path"]):
            await _refuse(send, 403, b"no files are served here\n")
        elif scope.get("method") != "POST" or scope["path"].endswith("/upload"):  # which looks at sizes itself
            await self.app(scope, receive, send)
        else:
            await self._read_first(scope, receive, send)

    async def _read_first(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on after its whole body was looked at."""
        messages, size = [], 0
        while True:
            messages.append(await receive())
            size += len(messages[-1].get("body", b""))
            if size > MAX_BYTES:
                await _refuse(send, 413, b"more than an upload may have\n")
                return
            if not messages[-1].get("more_body"):
                break
        if names_address(b"".join(message.get("body", b"") for message in messages)):
            await _refuse(send, 403, b"nothing is fetched from elsewhere\n")
            return

        async def again() -> Any:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, again, send)


async def _refuse(send: Any, status: int, text: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text})


def names_address(body: bytes) -> bool:
    """Whether some ``path`` in a JSON body is an address; so is what is no JSON. The ``url`` beside a path is not read by
    Gradio, and the page itself sends one."""
    if not body:
        return False
    try:
        parts = [json.loads(body)]
    except (ValueError, RecursionError):
        return True
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            path = part.get("path")
            if isinstance(path, str) and ADDRESS.match(path):
                return True
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return False


def serve(path: str | Path, *, host: str = LOOPBACK, port: int | None = None, device: str = "auto") -> None:
    """Open a run (or ``hf:owner/name``) and serve its page until it is interrupted.

    ``host`` is the address to listen at, by default only this machine's own; ``port`` the first free one from 7860 if
    not given. Raises :class:`~overture.errors.OvertureError` where there is no such run, no Gradio or no such port.
    """
    from overture.processes import choose_device

    needs_gradio()
    page = launch(OpenedRun.open(path, choose_device(device)), host, port)
    print(f"{page.local_url} shows {path}; Ctrl-C ends it", flush=True)
    if host != LOOPBACK:
        print(f"everyone who can reach {host}:{page.server_port} can use it", flush=True)
    try:
        page.block_thread()
    finally:
        page.close(verbose=False)


def needs_gradio() -> None:
    """One line where the extra is not installed."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise missing_package("gradio", "app", "the page") from error


def launch(run: OpenedRun, host: str = LOOPBACK, port: int | None = None) -> gr.Blocks:
    """The page of a run, served in a thread of its own; ``close()`` ends it."""
    import gradio as gr
    from starlette.middleware import Middleware

    from overture.app.gradio_page import STYLE, build_page

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # nothing is fetched
    theme = gr.themes.Default(primary_hue="blue", **fonts).set(
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_600", button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700", button_primary_background_fill_hover_dark="*primary_700",
    )  # fmt: skip
    page = build_page(run).queue(max_size=WAITING, default_concurrency_limit=1)
    try:
        page.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, inbrowser=False,
            max_file_size=MAX_BYTES, state_session_capacity=100, footer_links=[], run_history=False, ssr_mode=False,
            enable_monitoring=False, mcp_server=False, pwa=False, theme=theme, css_paths=STYLE,
            app_kwargs={"middleware": [Middleware(FilesRefused)]},
        )  # fmt: skip
    except OSError as error:
        raise OvertureError(f"--port {port or 7860}: cannot listen at {host} ({error}); give another --port") from error
    return page
