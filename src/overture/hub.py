"""Files on the Hugging Face hub, ``hf:owner/name[@revision][/folder]``: on a command line, nothing typed otherwise leaves the
machine. In Python, ``from_pretrained`` also takes ``owner/name``, where no folder is called so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from overture.errors import OvertureError, UsageError

__all__ = ["HubFolder", "find_place", "is_hub", "upload"]

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_FORM = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+?))?/?")


def is_hub(path: str | Path | HubFolder) -> bool:
    """Whether this names something on the hub."""
    return isinstance(path, HubFolder) or str(path).startswith("hf:")


def find_place(path: str | Path, revision: str | None = None, subfolder: str = "") -> Path | HubFolder:
    """Where ``from_pretrained`` looks: a path of this machine if it is there, else ``owner/name`` or ``hf:...`` on the hub."""
    given = Path(path).expanduser()
    if not is_hub(path) and (given.exists() or not _REPOSITORY.fullmatch(str(path))):
        if revision is not None:
            raise UsageError(f"{path}: is no repository of the hub (owner/name), and revision goes with one")
        return given / subfolder if subfolder else given
    folder = HubFolder.parse(path if is_hub(path) else f"hf:{path}")
    if revision is not None and folder.revision not in (None, revision):
        raise UsageError(f"{path}: names the revision {folder.revision}, and revision is {revision}; give one of them")
    parts = [*PurePosixPath(folder.folder).parts, *PurePosixPath(subfolder).parts]
    return replace(folder, revision=revision or folder.revision, folder="/".join(parts))


@dataclass(frozen=True)
class HubFolder:
    """A folder of a repository, at a revision (a branch, a tag or a commit; None: the default branch as it is now)."""

    repository: str
    revision: str | None = None
    folder: str = ""

    @classmethod
    def parse(cls, text: str | Path | HubFolder) -> HubFolder:
        """Read ``hf:owner/name[@revision][/folder]``."""
        if isinstance(text, HubFolder):
            return text
        found = _FORM.fullmatch(str(text))
        if found is None:
            raise UsageError(f"{text}: write hf:owner/name, hf:owner/name@revision or hf:owner/name/folder")
        return cls(found[1], found[2], found[3] or "")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repository}{revision}" + (f"/{self.folder}" if self.folder else "")

    def fetch(self, name: str) -> Path | None:
        """The file ``name`` of this folder in the hub's cache, fetched if need be; None if there is no such file."""
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        file = "/".join(part for part in (self.folder, name) if part)
        with _told(self, "cannot be had from the hub"):
            try:
                return Path(hf_hub_download(self.repository, file, revision=self.revision))
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):
                    # Without a network: the cache also remembers which files are not there, by a mark of its own.
                    known = try_to_load_from_cache(self.repository, file, revision=self.revision)
                    if isinstance(known, str | None):
                        raise
                return None

    def pinned(self, fetched: Path) -> HubFolder:
        """The same at the commit that a fetched file is of, which the cache names."""
        parts = fetched.parts[::-1]  # from the end: a folder above the cache may be called the same
        commit = parts[parts.index("snapshots") - 1] if "snapshots" in parts[1:] else self.revision
        return HubFolder(self.repository, commit, self.folder)


def upload(
    folder: Path, repository: str, *, private: bool = False, revision: str | None = None, message: str = ""
) -> HubFolder:
    """Put the files of a folder into a repository, as one commit; files there of other names stay. Which commit it is.

    The repository and the branch ``revision`` are made if they are not there; ``private`` counts for a new repository.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"'{repository}': a repository of the hub is called owner/name")
    place, api = HubFolder(repository, revision), HfApi()
    with _told(place, "cannot be pushed to"):
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        added = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        # Not the client's upload_folder, which may make several commits: a reader would see half of a model.
        commit = api.create_commit(repository, added, commit_message=message or "Add files", revision=revision)
        return replace(place, revision=commit.oid)


@contextmanager
def _told(place: HubFolder, what: str) -> Iterator[None]:
    """Whatever the hub answers, in one line."""
    try:
        yield
    except Exception as error:
        # Of the connection: which library's error it is, depends on the version of the hub's client.
        connection = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests")
        if not connection and not isinstance(error, OSError | ValueError):
            raise
        reason = f"no connection to the hub: {_first_line(error)}" if connection else _reason(place, error)
        raise OvertureError(f"{place}: {what} ({reason})") from error


def _reason(place: HubFolder, error: BaseException) -> str:
    from huggingface_hub import errors as hub

    status = getattr(getattr(error, "response", None), "status_code", None)
    log_in = "log in with 'hf auth login', or set HF_TOKEN"
    if isinstance(error, hub.GatedRepoError):
        return f"its owners let chosen accounts alone read it; ask for that on its page, then {log_in}"
    if isinstance(error, hub.RevisionNotFoundError):
        return f"no such revision: it has no branch, tag or commit '{place.revision}'"
    if isinstance(error, hub.RepositoryNotFoundError):
        return f"no such repository, or a private one and no token that may read it; if so, {log_in}"
    if isinstance(error, hub.LocalTokenNotFoundError) or status in (401, 403):
        return f"the hub wants a token that may do this; {log_in}"
    if isinstance(error, hub.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, hub.LocalEntryNotFoundError):
        cause = error.__cause__
        if isinstance(cause, hub.OfflineModeIsEnabled | hub.HfHubHTTPError):
            return f"not in the cache, and {_reason(place, cause)}"
        return "not in the cache, and there is no connection to the hub"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
