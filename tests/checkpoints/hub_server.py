"""The Hub, as far as huggingface_hub asks it, on this machine: one repository, and all that was asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass(frozen=True)
class Asked:
    """One request: `path` without its query, and the Range that was asked for."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """A Hub with one repository.

    Attributes:
        files: Of the repository, by name. Those of `.safetensors` are large files, which lie on another path.
        revisions: From a branch or tag to a commit.
        token: What a caller must bring to be given files, or None.
        sends: How many bytes of a file are sent before the connection is cut, by name, once each.
        breaks: Whether such a cut is the last that the file's asker hears: from then on it is refused.
        refuses: The status that is answered in place of a file, by name.
        garbled: What is sent in place of a file's content, by name.
        asked: All requests, in order.
    """

    repo_id: str
    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    token: str | None = None
    sends: dict[str, int] = field(default_factory=dict)
    breaks: bool = False
    refuses: dict[str, int] = field(default_factory=dict)
    garbled: dict[str, bytes] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    stop: Callable[[], None] = lambda: None

    def asked_for(self, name: str, method: str = "GET") -> list[Asked]:
        """Requests for a file's content."""
        paths = (f"/{self.repo_id}/resolve/{COMMIT}/{name}", f"/lfs/{self.sha256(name)}")
        return [each for each in self.asked if each.method == method and each.path in paths]

    def names_asked_for(self) -> set[str]:
        """Of the files of which anything was asked but whether they are there."""
        return {name for name in self.files if self.asked_for(name)}

    def is_large(self, name: str) -> bool:
        return name.endswith(".safetensors")

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.files[name]).hexdigest()

    def git_sha(self, name: str) -> str:
        return hashlib.sha1(self.files[name], usedforsecurity=False).hexdigest()

    def siblings(self) -> list[dict[str, Any]]:
        listed = []
        for name, content in self.files.items():
            lfs = {"lfs": {"sha256": self.sha256(name), "size": len(content), "pointerSize": 134}} if self.is_large(name) else {}
            listed.append({"rfilename": name, "size": len(content), "blobId": self.git_sha(name), **lfs})
        return listed

    def tree(self) -> list[dict[str, Any]]:
        folders = sorted({name.rpartition("/")[0] for name in self.files if "/" in name})
        listed: list[dict[str, Any]] = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in folders]
        for name, content in self.files.items():
            large = {"oid": self.sha256(name), "size": len(content), "pointerSize": 134}
            lfs = {"lfs": large} if self.is_large(name) else {}
            listed.append({"type": "file", "oid": self.git_sha(name), "size": len(content), "path": name, **lfs})
        return listed


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The Hub on a port of loopback. `hub.stop()` ends it before the block does."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop() -> None:
        if thread.is_alive():
            server.shutdown()
            thread.join()
            server.server_close()

    hub.stop = stop
    try:
        yield hub
    finally:
        stop()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append(Asked(self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        if found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            name = next(name for name in hub.files if hub.is_large(name) and hub.sha256(name) == found[1])
            return self._content(name, found[1])
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+?))?/?", path)
        if found:
            return self._api(found[1], found[2], found[3] or "main")
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if found and self._is_here(found[1], found[2]):
            return self._file(found[3])
        return None if found else self._error(HTTPStatus.NOT_FOUND, "EntryNotFound")

    def _is_here(self, repo_id: str, revision: str) -> bool:
        if repo_id != self.hub.repo_id:
            self._error(HTTPStatus.UNAUTHORIZED, "RepoNotFound")  # as the Hub does, which tells nobody what is private
        elif revision not in {*self.hub.revisions, *self.hub.revisions.values()}:
            self._error(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        else:
            return True
        return False

    def _api(self, repo_id: str, what: str | None, revision: str) -> None:
        if not self._is_here(repo_id, revision):
            return
        commit = self.hub.revisions.get(revision, revision)
        siblings = self.hub.siblings() if "blobs=true" in self.path.lower() else [{"rfilename": name} for name in self.hub.files]
        described = {"_id": "0", "id": repo_id, "sha": commit, "private": False, "siblings": siblings}
        self._send(json.dumps(self.hub.tree() if what == "tree" else described).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        if name not in self.hub.files:
            return self._error(HTTPStatus.NOT_FOUND, "EntryNotFound")
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._error(HTTPStatus.FORBIDDEN, "GatedRepo")
        if not self.hub.is_large(name):
            return self._content(name, self.hub.git_sha(name))
        linked = {"X-Linked-ETag": f'"{self.hub.sha256(name)}"', "X-Linked-Size": str(len(self.hub.files[name]))}
        location = {"Location": f"{self.hub.url}/lfs/{self.hub.sha256(name)}", "X-Repo-Commit": COMMIT}
        return self._send(b"", linked | location, HTTPStatus.FOUND)

    def _content(self, name: str, etag: str) -> None:
        if status := self.hub.refuses.get(name):
            return self._error(HTTPStatus(status), "")
        content = self.hub.garbled.get(name, self.hub.files[name])
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        cut = self.hub.sends.pop(name, None) if self.command == "GET" else None
        if cut is not None and self.hub.breaks:
            self.hub.refuses[name] = HTTPStatus.SERVICE_UNAVAILABLE
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, last = int(found[1]), len(content) - 1
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
            return self._send(content[start:], headers, HTTPStatus.PARTIAL_CONTENT, cut)
        return self._send(content, headers, HTTPStatus.OK, cut)

    def _error(self, status: HTTPStatus, code: str) -> None:
        self._send(b"", {"X-Error-Code": code, "X-Error-Message": "no"} if code else {}, status)

    def _send(self, body: bytes, headers: Mapping[str, str], status: HTTPStatus = HTTPStatus.OK, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of all files of a folder, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
