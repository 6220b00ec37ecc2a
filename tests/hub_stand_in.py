"""A stand-in for the hub, on this machine: the few answers of its interface that pushing and fetching files need.

It keeps commits as plain dictionaries, wants a token to write or to see a private repository, and remembers what it was
asked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"


@dataclass
class Repository:
    """Commits, oldest first, each with all its files; and where branches and tags point."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Add files on top of a branch; which commit it is."""
        whole = {**self.commits.get(self.names.get(branch, ""), {}), **files}
        oid = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[oid], self.names[branch] = whole, oid
        return oid


class StandIn(ThreadingHTTPServer):
    """The server, and what it holds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def push(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit of someone else's."""
        return self.repositories.setdefault(name, Repository()).commit(branch, files)


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A running server."""
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Answers(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        self._file()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            text = json.loads(body)["content"]
            good = text.startswith("---\n") and "\n---\n" in text
            return self._json(200, {"errors": [] if good else [{"message": "no front matter"}], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
            if name in self.server.repositories:
                return self._json(
                    409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}
                )
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.server.repositories[name] = Repository(private)
            self.server.repositories[name].commit("main", {})
            return self._json(200, {"url": f"{self.server.url}/{name}"})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path)
        if not found or found[1] not in self.server.repositories:
            return self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return self._write(self.server.repositories[found[1]], found[2], found[3], found[1], body)

    def _write(self, repository: Repository, what: str, branch: str, name: str, body: bytes) -> None:
        if what == "branch":
            if branch in repository.names:
                return self._json(409, {"error": "Reference already exists"})
            repository.names[branch] = repository.names["main"]
            return self._json(200, {})
        if what == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self._json(200, {"files": modes})
        lines = [json.loads(line) for line in body.splitlines() if line]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        oid = repository.commit(branch, files)
        return self._json(
            200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid, "success": True}
        )

    def _file(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        may = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository = self.server.repositories.get(found[1]) if found else None
        if found is None or repository is None or (repository.private and not may):
            return self._json(404 if may else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        commit = repository.names.get(found[2], found[2])
        if commit not in repository.commits:
            return self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        about = {"X-Repo-Commit": commit}
        content = repository.commits[commit].get(found[3])
        if content is None:
            return self._json(404, {"error": "Entry not found"}, {**about, "X-Error-Code": "EntryNotFound"})
        return self._send(200, content, {**about, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _json(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
