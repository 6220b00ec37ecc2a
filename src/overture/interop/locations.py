"""Where a release directory lies: on this machine, or on the hub, from which only the files asked for are fetched."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from overture.errors import OvertureError

__all__ = ["HubLocation", "LocalLocation", "Location", "open_location"]


class LocalLocation:
    """A directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = directory.resolve().name

    def __str__(self) -> str:
        return str(self.directory)

    def has(self, stem: str) -> bool:
        """Whether ``stem.safetensors`` is there."""
        return (self.directory / f"{stem}.safetensors").is_file()

    def file(self, stem: str) -> Path:
        """The path of ``stem.safetensors``."""
        if not self.has(stem):
            raise OvertureError(f"{self.directory / stem}.safetensors: no such file; the release has it")
        return self.directory / f"{stem}.safetensors"


class HubLocation:
    """A directory of a repository on the hub; files are kept in the hub's cache."""

    def __init__(self, repository: str, folder: str) -> None:
        self.repository, self.folder = repository, folder
        self.name = (folder or repository).rsplit("/", 1)[-1]
        self._fetch = cache(self._download)

    def __str__(self) -> str:
        return "/".join(part for part in (self.repository, self.folder) if part)

    def has(self, stem: str) -> bool:
        """Whether ``stem.safetensors`` is there (it is fetched if so)."""
        return self._fetch(stem) is not None

    def file(self, stem: str) -> Path:
        """The cached ``stem.safetensors``."""
        found = self._fetch(stem)
        if found is None:
            raise OvertureError(f"{self}: no {stem}.safetensors on the hub; is the name right?")
        return found

    def _download(self, stem: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        name = "/".join(part for part in (self.folder, f"{stem}.safetensors") if part)
        try:
            return Path(hf_hub_download(self.repository, name))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                return None
            reason = str(error).strip().splitlines()[0]
            raise OvertureError(f"{self}: neither a local directory nor on the hub ({reason})") from error


Location = LocalLocation | HubLocation


def open_location(source: str | Path) -> Location:
    """A directory, or a hub id: ``owner/repository/directory``."""
    if Path(source).is_dir():
        return LocalLocation(Path(source))
    parts = str(source).split("/")
    if Path(source).exists() or len(parts) < 2 or str(source).startswith((".", "/", "~")):
        raise OvertureError(f"{source}: neither a directory nor a hub id (owner/repository/directory)")
    return HubLocation("/".join(parts[:2]), "/".join(parts[2:]))
