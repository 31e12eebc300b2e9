"""A hub in miniature: the few requests that `huggingface_hub` makes for a data set, served from memory."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from dpbench.tasks import TASKS

COMMIT = "a" * 40
"""Of a repository that no task pins."""


def pinned(repository: str) -> str:
    """Return the commit a repository's tasks are pinned to."""
    name = repository.partition("/")[2]
    return next((task.revision for task in TASKS.values() if task.repository == name and task.revision), COMMIT)


@dataclass
class FakeHub:
    """Repositories by name, their files by path; `break_at` cuts the first file's answer off after so many bytes."""

    repositories: Mapping[str, Mapping[str, bytes]]
    break_at: int | None = None
    commit: str | None = None
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)

    def commit_of(self, repository: str) -> str:
        return self.commit or pinned(repository)

    def listed(self, repository: str) -> list[dict[str, object]]:
        return [
            {"rfilename": path, "size": len(data), "blobId": "b" * 40,
             "lfs": {"sha256": sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}}
            for path, data in self.repositories[repository].items()
        ]  # fmt: skip

    def tree(self, repository: str) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": path, "size": len(data), "oid": "b" * 40,
             "lfs": {"oid": sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}}
            for path, data in self.repositories[repository].items()
        ]  # fmt: skip


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.asked.append(f"{self.command} {path}")
            parts = path.split("/")
            if parts[:2] == ["api", "datasets"]:
                self._api("/".join(parts[2:4]), parts[4:])
            elif parts[0] == "datasets" and parts[3] == "resolve":
                self._file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
            else:
                self._answer(404, {}, b"")

        def _api(self, repository: str, rest: list[str]) -> None:
            if repository not in hub.repositories:
                self._answer(404, {"X-Error-Code": "RepoNotFound"}, b"{}")
            elif rest and rest[0] == "tree":
                self._json(hub.tree(repository))
            elif rest and rest[1] not in ("main", hub.commit_of(repository)):
                self._answer(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
            else:
                self._json({"id": repository, "sha": hub.commit_of(repository), "siblings": hub.listed(repository)})

        def _json(self, content: object) -> None:
            self._answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

        def _file(self, repository: str, revision: str, path: str) -> None:
            data = hub.repositories[repository][path]
            stated = sha256(data).hexdigest()
            headers = {
                "ETag": f'"{stated}"',
                "X-Repo-Commit": hub.commit_of(repository),
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": f'"{stated}"',
                "Accept-Ranges": "bytes",
            }
            start = 0
            if self.command == "GET" and (wanted := self.headers.get("Range")):
                hub.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._answer(206 if start else 200, headers, data[start:])

        def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.break_at is not None and "X-Repo-Commit" in headers:
                body, hub.break_at = body[: hub.break_at], None
                self.close_connection = True
            self.wfile.write(body)

    return Handler


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve a hub on this machine while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
