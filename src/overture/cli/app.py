"""``overture app RUN``: a page in the browser to draw, edit and blend pictures of a trained run."""

from __future__ import annotations

import argparse
from typing import Any

from overture.errors import UsageError


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "app",
        help="a page in the browser for a trained run",
        description="Example: overture app runs/quickstart/vcq\n\n"
        "Serve a page that draws pictures, keeps their first tokens, edits and blends them. It is for this machine alone "
        "unless --host says otherwise.",
    )
    parser.add_argument("path", metavar="RUN", help="a run directory, or hf:owner/name")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from overture.app.gradio_server import serve

    if options.port is not None and not 0 < options.port < 65536:
        raise UsageError(f"--port is {options.port}, needs 1 to 65535")
    serve(options.path, host=options.host, port=options.port, device=options.device)
    return 0
