"""What a stage starts from: a trained model, given by its file, its run or its place on the hub (docs/fine-tune.md).

Its weights are those that published numbers use: a tokenizer's EMA (unless its file says otherwise), a prior's raw ones.
Rows of classes are the only weights that may differ in number: a class that the model does not know begins as "no
class", which every model knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from overture.config import differences, from_dict
from overture.errors import OvertureError
from overture.hub import HubFolder, is_hub
from overture.layout import Layout
from overture.model_files import find_model, ids_hash, load_model, read_metadata, read_weights
from overture.priors.model import Prior, PriorConfig
from overture.tokenizers.config import TokenizerConfig
from overture.tokenizers.tokenizer import Tokenizer, TrainedPart

__all__ = ["Start", "check_prior", "fitting_weights", "layout_difference", "start_prior", "start_tokenizer"]

CLASS_COLUMNS = "condition.classes.weight"
"""Ends the names of matrices with a column for every class and a last one for "no class"."""


HOW_CODES_LEARN = ("revive_after", "commitment")
"""Options of quantizers that say nothing of the ids that a finished codebook gives."""


@dataclass(frozen=True)
class Start:
    """A trained model to start from: where it lies, which of its weights are used, and what its file says of it."""

    file: Path
    weights: Literal["raw", "ema"]
    metadata: dict[str, Any]
    place: str
    """As it was given; on the hub with the commit."""

    @classmethod
    def find(cls, path: str, kind: str) -> Start:
        """The trained ``kind`` (tokenizer, prior) at ``path``; one line if there is none."""
        file = find_model(path, kind)
        metadata = read_metadata(file, kind)
        weights: Any = metadata.get("use_weights", "ema") if kind == "tokenizer" else "raw"
        return cls(file, weights, metadata, str(HubFolder.parse(path).pinned(file)) if is_hub(path) else path)

    @property
    def record(self) -> dict[str, str]:
        """What a model file that was trained from here says of it."""
        return {"model": self.place, "weights": self.weights, "weights_hash": str(self.metadata["weights_hash"])}


# -- tokenizers -----------------------------------------------------------------------------------------------------


def start_tokenizer(tokenizer: Tokenizer, start: Start, trains: TrainedPart = "everything") -> None:
    """Copy the weights of a trained tokenizer. Parts that it lacks keep their fresh ones."""
    tokenizer.load_state_dict(fitting_weights(tokenizer, start, trains), strict=False)


def fitting_weights(tokenizer: Tokenizer, start: Start, trains: TrainedPart = "everything") -> dict[str, Tensor]:
    """The weights of a trained tokenizer, if all of them fit this one, and what it lacks is to be trained.

    Where its ids have to stay what they are (its decoder ``trains``, or nothing), the two have to be made alike.
    """
    file, own = start.file, tokenizer.state_dict()
    if trains != "everything":
        _check_alike(tokenizer.config, start)
    weights = without_counts(read_weights(file, start.weights))
    for name, tensor in weights.items():
        if name in own and name.endswith(CLASS_COLUMNS):
            weights[name] = tensor = _for_classes(tensor, 1, own[name].shape[1] - 1)
        if name not in own or own[name].shape != tensor.shape:
            here = list(own[name].shape) if name in own else "nothing"
            raise OvertureError(f"{file}: {name} is {list(tensor.shape)}, the new tokenizer has {here} in its place")
    trained = dict(tokenizer.trained_parameters(trains))
    for name in without_counts(own).keys() - weights.keys() - trained.keys():
        raise OvertureError(f"{file}: has no {name}, which the new tokenizer needs and does not train")
    return weights


def without_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights alone: how long a code has been idle begins anew, and not every config counts it."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(".idle")}


def _check_alike(config: TokenizerConfig, start: Start) -> None:
    there = from_dict(TokenizerConfig, start.metadata.get("config"), f"{start.file}: config")
    if told := layout_difference(there.layout, config.layout):
        raise OvertureError(f"{start.file}: its ids are of another layout: {told}")
    different = [
        told
        for told in differences(there, replace(config, num_classes=there.num_classes))
        if not any(name in told for name in HOW_CODES_LEARN) and ".init was " not in told
    ]
    if different:
        raise OvertureError(
            f"{start.file}: a tokenizer of other sizes than this run's ({'; '.join(different[:3])}); its encoder can only "
            "stay as it is in one of its own"
        )


# -- priors ---------------------------------------------------------------------------------------------------------


def check_prior(config: PriorConfig, layout: Layout, start: Start, tokenizer: Start | None) -> None:
    """Refuse a prior of another layout or size, or of other ids than those of the ``tokenizer`` that is started from.

    Imported priors do not say whose ids they have learned; of them the layout has to do.
    """
    there = Layout.from_dict(start.metadata.get("layout"))
    if told := layout_difference(there, layout):
        raise OvertureError(f"{start.file}: a prior of another layout: {told}")
    sizes = from_dict(PriorConfig, start.metadata.get("config"), f"{start.file}: config")
    different = differences(sizes, replace(config, num_classes=sizes.num_classes, dropout=sizes.dropout))
    if different:
        raise OvertureError(f"{start.file}: a prior of other sizes than this run's ({'; '.join(different[:3])})")
    learned = start.metadata.get("tokenizer_hash")
    if tokenizer is not None and learned is not None and learned != (given := ids_hash(tokenizer.metadata)):
        raise OvertureError(
            f"{start.file}: has learned the ids of the tokenizer {learned}, and {tokenizer.file} gives those of {given}; "
            "start both from one run"
        )


def start_prior(prior: Prior, start: Start, classes: Sequence[str] = ()) -> None:
    """Copy the weights of a trained prior.

    Its classes go to those of ``classes`` that are called as they were; if either names are not known, to the same
    numbers where there are equally many, and to none otherwise.
    """
    check_prior(prior.config, prior.layout, start, None)
    sizes = from_dict(PriorConfig, start.metadata.get("config"), f"{start.file}: config")
    weights = load_model(start.file, start.weights, lambda: sizes.build(prior.layout)).state_dict()
    known, count = start.metadata.get("classes", ()), prior.config.num_classes
    for name, axis in (("class_embedding.weight", 0), (f"transformer.{CLASS_COLUMNS}", 1)):
        weights[name] = _for_classes(weights[name], axis, count, known, classes)
    prior.load_state_dict(weights)


def _for_classes(
    table: Tensor, axis: int, count: int, known: Sequence[str] = (), classes: Sequence[str] = ()
) -> Tensor:
    """A table of classes along ``axis``, "no class" the last, as one of ``count`` other classes."""
    unconditional = table.shape[axis] - 1
    if len(known) == unconditional and len(classes) == count:
        places = [known.index(name) if name in known else unconditional for name in classes]
    else:
        places = list(range(count)) if count == unconditional else [unconditional] * count
    return table.index_select(axis, torch.tensor([*places, unconditional], device=table.device))


# -- layouts --------------------------------------------------------------------------------------------------------


def layout_difference(there: Layout, here: Layout) -> str:
    """In what two layouts differ first, in words; nothing if they are the same."""
    if there.names != here.names:
        return f"its segments are {', '.join(there.names)}, this run's {', '.join(here.names)}"
    for its, own in zip(there.segments, here.segments, strict=True):
        if len(its) != len(own):
            return f"its {its.name} segment has {len(its)} tokens, this run's {len(own)}"
        if its.separator != own.separator:
            return f"a separator follows the {its.name} segment in one of the two alone"
        for place, (size, other) in enumerate(zip(its.sizes, own.sizes, strict=True)):
            if size != other:
                return f"its {its.name} token {place} has {size} codes, this run's {other}"
    return ""
