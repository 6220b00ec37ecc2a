"""Files on the Hugging Face hub, named ``hf:owner/name[@revision][/folder]``: nothing typed otherwise leaves the machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from overture.errors import OvertureError, UsageError

__all__ = ["HubFolder", "is_hub"]

_FORM = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+?))?/?")


def is_hub(path: str | Path) -> bool:
    """Whether this names something on the hub."""
    return str(path).startswith("hf:")


@dataclass(frozen=True)
class HubFolder:
    """A folder of a repository, at a revision (a branch, a tag or a commit; None: the default branch as it is now)."""

    repository: str
    revision: str | None = None
    folder: str = ""

    @classmethod
    def parse(cls, text: str | Path) -> HubFolder:
        """Read ``hf:owner/name[@revision][/folder]``."""
        found = _FORM.fullmatch(str(text))
        if found is None:
            raise UsageError(f"{text}: write hf:owner/name, hf:owner/name@revision or hf:owner/name/folder")
        return cls(found[1], found[2], found[3] or "")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repository}{revision}" + (f"/{self.folder}" if self.folder else "")

    def fetch(self, name: str) -> Path | None:
        """The file ``name`` of this folder in the hub's cache, fetched if need be; None if there is no such file."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        file = "/".join(part for part in (self.folder, name) if part)
        try:
            return Path(hf_hub_download(self.repository, file, revision=self.revision))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                return None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OvertureError(f"{self}: cannot be had from the hub ({reason})") from error

    def pinned(self, fetched: Path) -> HubFolder:
        """The same at the commit that a fetched file is of, which the cache names."""
        parts = fetched.parts
        commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts else self.revision
        return HubFolder(self.repository, commit, self.folder)
