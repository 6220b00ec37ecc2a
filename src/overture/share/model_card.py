"""The model card: a repository's README, made from what a run has written down. What is not known is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from overture import __version__
from overture.loggers.run_record import begins_with_tokens
from overture.report import words
from overture.report.records import Record
from overture.report.table import Footnotes, Row, metric_groups, protocol_sentences

__all__ = ["Card"]

PICTURE = "samples/classes.png"


@dataclass(frozen=True)
class Card:
    """What goes into a card: the run as it lies on disk, and what a repository adds to it."""

    repository: str
    """``owner/name``."""
    record: Record
    models: Mapping[str, str]
    """The hash of the weights of each model in the repository: ``tokenizer``, ``prior``."""
    layout: str
    """The layout of the tokens, in words."""
    licence: str = ""
    """As the hub calls it (``apache-2.0``, ``cc-by-4.0``, ...); nothing if its author gave none."""
    needed: Sequence[str] = ()
    """Parts of the models that are someone's ``module:name``."""
    pictures: Sequence[str] = ()
    """Paths of pictures in the repository."""
    trained_on: Mapping[str, str] = field(default_factory=dict)
    """By model what it was trained on, in words, where its file says so."""

    def __str__(self) -> str:
        name = self.repository.rpartition("/")[2]
        sections = [
            f"# {name}\n\n{self._what()}",
            self._samples(),
            _section("Use", self._use()),
            _section("What it is", self._facts()),
            _section("Numbers", self._numbers()),
            _section("Licence", self._licence()),
        ]
        return self._front_matter() + "\n\n".join(section for section in sections if section) + "\n"

    def _front_matter(self) -> str:
        """What the hub reads: YAML, of which JSON's texts are a part."""
        lines = ["library_name: overture"]
        lines += [f"license: {json.dumps(self.licence)}"] if self.licence else []
        lines += ["pipeline_tag: unconditional-image-generation"] if "prior" in self.models else []
        lines += ["tags:", "- image-generation", "- autoregressive", "- image-tokenizer"]
        return "\n".join(["---", *lines, "---", "", ""])

    def _what(self) -> str:
        both = "An autoregressive image generator: a tokenizer, and a prior over its tokens"
        which = both if len(self.models) == 2 else f"The {next(iter(self.models))} of an autoregressive image generator"
        source = self._source()
        return f"{which}{f', trained on {source}' if source else ''}. Made with Overture {__version__}, the Python package `overture`."

    def _source(self) -> str | None:
        """What it was trained on, where that is known."""
        config = self.record.config
        return "imported tokens" if begins_with_tokens(config) else config.get("data", {}).get("source")

    def _samples(self) -> str:
        if PICTURE not in self.pictures:
            return ""
        guidance = self.record.config.get("evaluation", {}).get("guidance")
        told = f" (guidance {guidance})" if guidance else ""
        return f"![Samples]({PICTURE})\n\nSamples{told}: every row is a class."

    def _use(self) -> str:
        if len(self.models) == 2:
            code = (
                "import overture\nfrom PIL import Image\n\n"
                f'pipe = overture.Pipeline.from_pretrained("{self.repository}")\n'
                'pipe.pictures([0] * 4, seed=0)[0].save("sample.png")  # classes by number; names: pipe.class_names\n'
                'ids = pipe.encode(Image.open("picture.png"))  # its tokens\n'
                "again = overture.to_pil(pipe.decode(ids))[0]"
            )
            shell = f"overture generate hf:{self.repository} --out samples.png"
            text = f"```python\n{code}\n```\n\nIn a shell: `{shell}`"
        else:
            kind = next(iter(self.models))
            code = f'import overture\n\n{kind} = overture.{kind.title()}.from_pretrained("{self.repository}")'
            text = f"```python\n{code}\n```"
        if self.needed:
            modules = words.joined([f"`{kind.rpartition(':')[0]}`" for kind in self.needed])
            parts = words.joined([f"`{kind}`" for kind in self.needed])
            text += (
                f"\n\n**It needs code that is not here**: {parts} is no part of Overture. Get the module {modules} from "
                "the author and put it into the folder that you work in; nothing in this repository is run."
            )
        return text

    def _facts(self) -> str:
        config, record = self.record.config, self.record
        data, classes = config.get("data", {}), record.classes
        rows = {
            "Data": self._source(),
            "Held-out images": data.get("held_out") or (f"{data['held_out_share']:.0%} of it" if data else None),
            "Images": f"{data['image_size']} px, {'grey' if data['channels'] == 1 else 'colour'}" if data else None,
            "Classes": _names(classes),
            "Tokens": self.layout,
            "Parameters": ", ".join(f"{kind} {record.weights[kind] / 1e6:.2f} M" for kind in self.models if record.weights.get(kind)),
            "Training": ", ".join(
                f"{kind} {config[f'{kind}_training']['steps']:,} steps of {config[f'{kind}_training']['batch_size']}"
                for kind in self.models
                if f"{kind}_training" in config
            ),
            "Trained on": ", ".join(f"{kind}: {words}" for kind, words in self.trained_on.items()),
            "Recipe": f"{'prior settings of ' if begins_with_tokens(config) else ''}{config['recipe']}{' (tiny: for a try, not for pictures)' if config.get('tiny') else ''}, seed {config['seed']}"
            if config.get("recipe")
            else None,
            "Weights (hash)": ", ".join(f"{kind} `{digest}`" for kind, digest in self.models.items()),
        }  # fmt: skip
        table = [f"| {name} | {_cell(str(value))} |" for name, value in rows.items() if value]
        return "\n".join(["| | |", "| --- | --- |", *table]) + (
            "\n\nThe whole config is in `config.json`." if config else ""
        )

    def _numbers(self) -> str:
        """The numbers of the run's page, and how each of them was made."""
        notes = Footnotes()
        everything = not begins_with_tokens(self.record.config)  # else there is nothing to measure of images
        parts = []
        for group in metric_groups([self.record], notes)[:-1]:  # the last: size and cost
            rows = [row for row in group.rows if everything or row.cells[0].value]
            lines = [f"| {_cell(row.label)} | {_printed(row)} | {_cell(_about(row))} |" for row in rows]
            if lines:
                parts.append("\n".join([f"| {group.title} | | |", "| --- | --- | --- |", *lines]))
        said = [f"- {mark}: {_cell(note)}" for mark, note in notes.items]
        said += [f"- {what}: {_cell(how)}" for what, how in protocol_sentences([self.record])]
        if parts and said:
            parts.append("How they were measured:\n\n" + "\n".join(said))
        return "\n\n".join(parts)

    def _licence(self) -> str:
        if self.licence:
            return f"`{self.licence}`, as its author has said."
        return "Its author has given none. Ask before you use it."


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _printed(row: Row) -> str:
    """The number of the one run, with its unit and its marks."""
    cell = row.cells[0]
    unit = f" {row.unit}" if row.unit and cell.value else ""
    marks = f" ({', '.join(cell.marks)})" if cell.marks else ""
    return _cell(f"{cell.value or 'not measured'}{unit}{marks}")


def _about(row: Row) -> str:
    better = f"{row.better} is better" if row.better else ""
    return "; ".join(part for part in (row.meaning, better, row.cells[0].detail) if part)


def _cell(text: str) -> str:
    """Text that stays inside its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _names(classes: Sequence[str]) -> str:
    if len(classes) > 20:
        return f"{len(classes)}, listed in `classes.json`"
    return f"{len(classes)}: {', '.join(classes)}" if classes else ""
