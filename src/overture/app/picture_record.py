"""A PNG that says how it was made: the settings are a JSON text in the file, and ``generate --like`` reads them.

A picture is its kept tokens and how the others were drawn. One that was decoded (an upload, an edit, a blend) keeps all.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from overture.errors import OvertureError, UsageError
from overture.layout import Layout
from overture.priors.sampling import Sampling

__all__ = ["PictureRecord", "png_bytes", "read_record_text"]

KEYWORD, FORMAT = "overture", 1


@dataclass(frozen=True)
class PictureRecord:
    """All that a picture depends on, besides the weights that the hashes name."""

    tokenizer_hash: str
    kept: tuple[int, ...]
    """Local ids of the first tokens; the others are drawn."""
    prior_hash: str = ""
    """Empty where all tokens are kept: no prior took part."""
    class_id: int = 0
    class_name: str = ""
    seed: int = 0
    guidance: str = "none"
    temperature: str = "1"
    top_k: str = "0"
    top_p: str = "1"
    made: str = ""
    """In words, for people: what was blended or edited."""

    @property
    def sampling(self) -> Sampling:
        """How the tokens are drawn that are not kept."""
        return Sampling.parse(self.guidance, self.temperature, self.top_k, self.top_p)

    def to_text(self) -> str:
        """The JSON that is written into the picture."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_text(cls, text: str, where: str) -> PictureRecord:
        """The inverse; anything else is one line."""
        try:
            data: Any = json.loads(text)
            if data.pop("format") != FORMAT:
                raise ValueError("another format")
            for field in fields(cls):
                kind = {"kept": list, "class_id": int, "seed": int}.get(field.name, str)
                if type(data[field.name]) is not kind:
                    raise ValueError(field.name)
            if not all(type(number) is int and abs(number) < 2**31 for number in data["kept"]) or data["seed"] < 0:
                raise ValueError("kept or seed")
            record = cls(**{**data, "kept": tuple(data["kept"])})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise OvertureError(f"{where}: its settings are damaged ({error}); save it from the page again") from error
        _ = record.sampling  # refuses what is no guidance or temperature
        return record

    def check(self, layout: Layout, tokenizer_hash: str, prior_hash: str, where: str) -> None:
        """Refuse a picture of other models than these."""
        pairs = (("tokenizer", self.tokenizer_hash, tokenizer_hash), ("prior", self.prior_hash, prior_hash))
        for kind, its, ours in pairs:
            if its and its != ours:
                raise UsageError(
                    f"{where}: is of another {kind} ({its}, here is {ours or 'none'}); give the run it is of"
                )
        self.sampling.check(layout)
        if len(self.kept) > layout.length or (not self.prior_hash and len(self.kept) < layout.length):
            raise OvertureError(f"{where}: keeps {len(self.kept)} tokens, of {layout.length}; its settings are damaged")


def png_bytes(image: Image.Image, text: str) -> bytes:
    """The file that holds a picture and the text of its record. The same two give the same bytes."""
    info = PngInfo()
    info.add_itxt(KEYWORD, text)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def read_record_text(path: Path) -> str:
    """The text of the record in a picture that the page made."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            text = image.info.get(KEYWORD)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such picture") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise OvertureError(f"{path}: is no PNG that can be read") from error
    if not isinstance(text, str):
        raise UsageError(f"{path}: says nothing of how it was made; give a PNG saved from the page of overture app")
    return str(text)
