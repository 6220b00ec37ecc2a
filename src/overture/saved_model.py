"""Modules that lie in one model file: ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``.

What was loaded and not changed since is saved as the file that it came from, with all its weights, so that its hash
and whatever refers to it stay true. Anything else is written anew, with the weights that the module has.
"""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from overture.elsewhere import names_in
from overture.errors import UsageError
from overture.files import copy_file
from overture.hub import HubFolder, find_place, upload
from overture.model_files import (
    find_model,
    load_model,
    read_metadata,
    read_weights,
    save_model,
    without_folders,
)  # fmt: skip

__all__ = ["FILE", "Origin", "SavedModel", "Weights", "push_models"]

Weights = Literal["raw", "ema"]

FILE = "model.safetensors"


@dataclass(frozen=True)
class Origin:
    """Where a module was loaded from: the file, which of its weights, and what it says beside them."""

    file: Path
    weights: Weights
    metadata: dict[str, Any]


class SavedModel(nn.Module):
    """A module with a model file of its own; subclasses say how it is built from the file's metadata, and what these are."""

    kind: ClassVar[str]
    """What its files are called in a run, and in their metadata."""
    origin: Origin | None = None
    """Where it was loaded from; None of a module that was built."""

    @classmethod
    @abstractmethod
    def from_metadata(cls, metadata: Mapping[str, Any], where: str) -> Self:
        """The module that a file's metadata describe, with fresh weights; ``where`` they are, for messages."""

    @abstractmethod
    def own_metadata(self) -> dict[str, Any]:
        """What a file has to say so that :meth:`from_metadata` builds this module again."""

    @classmethod
    @abstractmethod
    def usual_weights(cls, metadata: Mapping[str, Any]) -> Weights:
        """Which weights of a file are used if nobody says so."""

    @property
    def run_config(self) -> dict[str, Any]:
        """The config of the run that trained it, as plain values; empty where that is not known."""
        known = self.origin.metadata.get("run_config") if self.origin else None
        return known if isinstance(known, dict) else {}

    @classmethod
    def open(
        cls, path: str | Path | HubFolder, weights: Weights | None = None, device: str | torch.device = "cpu"
    ) -> Self:
        """The trained module that ``path`` means (:func:`overture.model_files.find_model`), ready to use."""
        file = find_model(path, cls.kind)
        metadata = read_metadata(file, cls.kind)
        role = weights or cls.usual_weights(metadata)
        module = load_model(file, role, lambda: cls._build(metadata, file))
        module.origin = Origin(file, role, metadata)
        return module.to(device)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str = "",
        weights: Weights | None = None,
        device: str | torch.device = "cpu",
    ) -> Self:
        """A trained module: of a file, a directory or a run, or of the hub (``owner/name``), ready to use.

        ``revision`` is a branch, a tag or a commit of the hub (default: its default branch as it is now), ``subfolder`` a
        folder inside. Files of the hub are kept in its cache, and are taken from there where there is no network.
        """
        return cls.open(find_place(path, revision, subfolder), weights, device)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``folder/model.safetensors``, from which :meth:`from_pretrained` makes this module again; its path."""
        path = Path(folder).expanduser() / FILE
        if self.origin is not None and self._is_as_loaded(self.origin):
            copy_file(self.origin.file, path)
            return path
        # Whose ids it gives is not carried on: with other weights these may be others.
        known = {} if self.origin is None else {"derived_from": self.origin.metadata["weights_hash"]}
        known |= {"run_config": self.run_config} if self.run_config else {}
        metadata = {**self.own_metadata(), **known, "use_weights": "raw"}
        save_model(path, self.kind, {"raw": self.state_dict()}, metadata)
        return path

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        revision: str | None = None,
        message: str = "",
        card: str = "",
    ) -> HubFolder:
        """Save into a repository of the hub, ``owner/name``, which is made if need be; where it lies there.

        ``revision`` is a branch (default: the default branch), ``card`` the text of its README. Folders of this machine
        that the run's config names (of the data, for example) are left out. Needs a token: ``hf auth login``, or ``HF_TOKEN``.
        """
        message = message or f"Add {self.kind}"
        return push_models({"": self}, repository, private=private, revision=revision, message=message, card=card)

    @classmethod
    def _build(cls, metadata: Mapping[str, Any], file: Path) -> Self:
        needed = names_in(metadata.get("config"))
        try:
            return cls.from_metadata(metadata, str(file))
        except UsageError as error:
            if not needed:
                raise
            raise UsageError(
                f"{file}: this {cls.kind} needs code that no model file holds, {' and '.join(needed)}: get the module from "
                f"who made the model and put it into the current folder ({error})"
            ) from error

    def _is_as_loaded(self, origin: Origin) -> bool:
        """Whether saving the file of origin says the same as this module."""
        if origin.weights != self.usual_weights(origin.metadata) or not origin.file.is_file():
            return False
        if read_metadata(origin.file, self.kind) != origin.metadata:
            return False  # another one has been written there since
        own, stored = self.state_dict(), read_weights(origin.file, origin.weights)
        return own.keys() == stored.keys() and all(
            tensor.dtype == own[name].dtype and torch.equal(tensor, own[name].cpu()) for name, tensor in stored.items()
        )


def push_models(
    models: Mapping[str, SavedModel], repository: str, *, private: bool, revision: str | None, message: str, card: str
) -> HubFolder:
    """Save each model into its folder of a repository (``""`` is the repository itself), without folders of this machine."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for folder, model in models.items():
            without_folders(model.save_pretrained(root / folder), model.kind)
        if card:
            (root / "README.md").write_text(card, encoding="utf-8")
        return upload(root, repository, private=private, revision=revision, message=message)
