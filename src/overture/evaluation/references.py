"""References that others publish as files: where such a file is had, and how it is known again.

The sha256 of ADM's file is the one that two independent copies of it on the hub record; a file that was downloaded or
lies in the cache has to have it. A file that is named by the user may be any.
"""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from pathlib import Path

from overture.data.known_sets import data_root
from overture.errors import OvertureError
from overture.files import check_once, file_hash

__all__ = ["ADM_IMAGENET_256", "PublishedReference"]


@dataclass(frozen=True)
class PublishedReference:
    """A file of statistics (and images) at ``url``, with its ``sha256`` and its size in ``bytes``."""

    url: str
    sha256: str
    bytes: int

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def place(self) -> Path:
        """Where it lies once it is downloaded: among the data sets (``$OVERTURE_DATA``)."""
        return data_root() / self.name

    def is_file(self, path: str, known_hash: str | None = None) -> bool:
        """Whether a file is this one. Statistics that say nothing of themselves are known by the hash of their file."""
        file = Path(path).expanduser()
        return known_hash == self.sha256 or (file.is_file() and file_hash(file) == self.sha256)

    def fetch(self) -> Path:
        """The file, downloaded where it is not there; a failed download and other bytes are an error."""
        if self.place.is_file():
            check_once(self.place, self._check)
            return self.place
        from torch.hub import download_url_to_file

        try:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(self.url, str(self.place), hash_prefix=self.sha256)
        except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:  # no network, or other bytes
            raise OvertureError(
                f"no reference {self.name} ({error}): give a file with --reference FILE, or put it into "
                f"{self.place.parent}, or connect to download {self.url} ({self.bytes / 1e9:.1f} GB)"
            ) from error
        return self.place

    def _check(self) -> None:
        found = file_hash(self.place)
        if found != self.sha256:
            raise OvertureError(
                f"{self.place}: is not the published file (sha256 {found[:12]}, not {self.sha256[:12]}); delete it"
            )


ADM_IMAGENET_256 = PublishedReference(
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/VIRTUAL_imagenet256_labeled.npz",
    "b32732719497e42660a9affb4a966068cba0855ac449b82015e34ec376d20758",
    2_037_122_530,
)
"""ADM's reference for ImageNet 256: statistics of all training images, and 10,000 of them."""
