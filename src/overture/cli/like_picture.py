"""``overture generate RUN --like picture.png``: a picture that the page of ``overture app`` saved, made again."""

from __future__ import annotations

import argparse
import sys

from overture.cli.common import print_json
from overture.errors import UsageError

SAID_BY_THE_PICTURE = {
    "classes": "all", "count": 8, "preset": None, "guidance": None, "temperature": None, "top_k": None, "top_p": None,
    "seed": 0, "weights": "raw", "bf16": False, "tokenizer": None, "prior": None,
}  # fmt: skip
"""Options that have to stay as they are without being given."""


def like_picture(options: argparse.Namespace) -> int:
    """Make it again, write it, and say whether it is the same byte for byte."""
    from overture.app.making import like
    from overture.app.opened_run import OpenedRun
    from overture.app.picture_record import png_bytes, read_record_text
    from overture.files import replacing
    from overture.processes import choose_device

    given = [name for name, value in SAID_BY_THE_PICTURE.items() if getattr(options, name) != value]
    if given:
        raise UsageError(f"--like: the picture says all settings; leave out --{given[0].replace('_', '-')}")
    if not options.path:
        raise UsageError("--like: give the RUN that the picture is of")
    if options.out.suffix != ".png":
        raise UsageError(f"--out {options.out}: a picture made again is a .png")
    text = read_record_text(options.like)
    made = like(OpenedRun.open(options.path, choose_device(options.device)), text, str(options.like))
    png = png_bytes(made.image, made.record.to_text())
    same = png == options.like.read_bytes()
    with replacing(options.out) as temporary:
        temporary.write_bytes(png)
    if options.json:
        print_json({"out": str(options.out), "same": same, "record": text})
    else:
        how = "the same, byte for byte" if same else "not the same bytes: another device, number of threads or version"
        print(f"{options.out}: {how}", file=sys.stderr)
    return 0
