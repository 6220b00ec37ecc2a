"""Where a release directory lies: on this machine, or on the hub, from which only the files asked for are fetched."""

from __future__ import annotations

from pathlib import Path

from overture.errors import OvertureError
from overture.hub import HubFolder, is_hub

__all__ = ["HubLocation", "LocalLocation", "Location", "open_location"]


class LocalLocation:
    """A directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = directory.resolve().name

    def __str__(self) -> str:
        return str(self.directory)

    @property
    def pinned(self) -> str:
        """Its name: where it lay on this machine says nothing elsewhere."""
        return self.name

    def has(self, stem: str) -> bool:
        """Whether ``stem.safetensors`` is there."""
        return (self.directory / f"{stem}.safetensors").is_file()

    def file(self, stem: str) -> Path:
        """The path of ``stem.safetensors``."""
        if not self.has(stem):
            raise OvertureError(f"{self.directory / stem}.safetensors: no such file; the release has it")
        return self.directory / f"{stem}.safetensors"


class HubLocation:
    """A folder on the hub; files are kept in the hub's cache."""

    def __init__(self, folder: HubFolder) -> None:
        self.folder = folder
        self.name = (folder.folder or folder.repository).rsplit("/", 1)[-1]
        self._fetched: dict[str, Path | None] = {}

    def __str__(self) -> str:
        return str(self.folder)

    def has(self, stem: str) -> bool:
        """Whether ``stem.safetensors`` is there (it is fetched if so)."""
        return self._fetch(stem) is not None

    def file(self, stem: str) -> Path:
        """The cached ``stem.safetensors``."""
        found = self._fetch(stem)
        if found is None:
            raise OvertureError(f"{self}: no {stem}.safetensors on the hub; is the name right?")
        return found

    @property
    def pinned(self) -> str:
        """The same with the commit that was fetched."""
        fetched = next((path for path in self._fetched.values() if path is not None), None)
        return str(self.folder if fetched is None else self.folder.pinned(fetched))

    def _fetch(self, stem: str) -> Path | None:
        if stem not in self._fetched:
            self._fetched[stem] = self.folder.fetch(f"{stem}.safetensors")
        return self._fetched[stem]


Location = LocalLocation | HubLocation


def open_location(source: str | Path) -> Location:
    """A directory, or ``hf:owner/repository[@revision]/directory``."""
    if is_hub(source):
        return HubLocation(HubFolder.parse(source))
    if Path(source).is_dir():
        return LocalLocation(Path(source))
    raise OvertureError(f"{source}: no such directory (of the hub, write hf:owner/repository/directory)")
