"""A hub of the loopback interface: the routes of the Hugging Face Hub that a client needs to fetch files.

    with LocalHub({"owner/name": {"config.json": b"{}"}}) as hub:
        hub.url                # what HF_ENDPOINT is set to
        hub.requests           # (method, path) of every request so far
        hub.served             # (path, start, stop) of the bytes of every body that a GET got

`hub_client` points the client at a running one, with a cache of its own.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub:
    """Repositories (name -> file name -> bytes) behind an HTTP server, until the `with` ends or `stop` is called.

    A repository named in `gated` answers as one whose terms were not accepted. `files` are served under `/files/`
    by their names, as any web server would. `commit` is what `main` stands for. Ranges of bytes are given as asked for, but
    for `whole_only`; the first `breaks` answers to such requests are cut off half-way. With `redirects`, repositories'
    files lie at an address of their own.
    """

    def __init__(
        self,
        repos: Mapping[str, Mapping[str, bytes]],
        gated: tuple[str, ...] = (),
        files: Mapping[str, bytes] | None = None,
        whole_only: bool = False,
        breaks: int = 0,
        redirects: bool = False,
    ) -> None:
        self.repos, self.gated, self.files = repos, gated, dict(files or {})
        self.whole_only, self.breaks, self.redirects = whole_only, breaks, redirects
        self.commit = COMMIT
        self.requests: list[tuple[str, str]] = []
        self.served: list[tuple[str, int, int]] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def log_message(self, *args: Any) -> None:
                pass  # the tests' output stays clean

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> LocalHub:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the hub off the network; a second call does nothing."""
        if self.thread.is_alive():
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

    def answer(self, request: http.server.BaseHTTPRequestHandler, with_body: bool) -> None:
        path = request.path.partition("?")[0]
        self.requests.append((request.command, path))
        status, headers, body = self.respond(path.strip("/").split("/"))
        asked = re.match(r"bytes=(\d+)-(\d*)$", request.headers.get("Range", ""))
        start, stop, breaks = 0, len(body), False
        if asked and status == 200 and with_body:
            breaks, self.breaks = self.breaks > 0, self.breaks - 1
            if not self.whole_only:
                start, stop = int(asked[1]), min(int(asked[2] or stop - 1) + 1, stop)
                status, headers = 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"}
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(stop - start))
        request.end_headers()
        if with_body:
            self.served.append((path, start, stop))
            with suppress(ConnectionError):  # a client need not take what it did not ask for
                request.wfile.write(body[start : (start + stop) // 2 if breaks else stop])
            request.close_connection = True

    def respond(self, parts: list[str]) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path, as the hub gives them."""
        if parts[0] == "files" and "/".join(parts[1:]) in self.files:
            return 200, {}, self.files["/".join(parts[1:])]
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.repos:
            return self.api("/".join(parts[2:4]), parts[4:])
        repo = "/".join(parts[:2])
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "accept the terms"}, b""
        if repo not in self.repos or parts[2:3] != ["resolve"] or len(parts) < 5:
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "no such repository"}, b""
        if parts[3] not in ("main", self.commit):
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no such revision"}, b""
        body = self.repos[repo].get("/".join(parts[4:]))
        if body is None:
            return (
                404,
                {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no such file", "X-Repo-Commit": self.commit},
                b"",
            )
        digest = f'"{hashlib.sha256(body).hexdigest()}"'
        headers = {"ETag": digest, "X-Linked-Etag": digest, "X-Linked-Size": str(len(body)), "X-Repo-Commit": self.commit}
        if self.redirects:
            self.files["/".join(parts)] = body
            elsewhere = f"{self.url.replace('127.0.0.1', 'localhost')}/files/{'/'.join(parts)}"
            return 302, headers | {"ETag": '"of the answer"', "Location": elsewhere}, b""
        return 200, headers | {"Accept-Ranges": "bytes"}, body

    def api(self, repo: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        """What the hub tells of a repository, or the list of its files."""
        names = sorted(self.repos[repo])
        if rest[:1] == ["tree"]:
            told: Any = [
                {
                    "type": "file",
                    "path": n,
                    "size": len(self.repos[repo][n]),
                    "oid": hashlib.sha1(self.repos[repo][n]).hexdigest(),
                }
                for n in names
            ]
        else:
            told = {
                "id": repo,
                "modelId": repo,
                "sha": self.commit,
                "tags": [],
                "siblings": [{"rfilename": n} for n in names],
            }
        return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()


def hub_client(monkeypatch: pytest.MonkeyPatch, hub: LocalHub, cache: Path) -> None:
    """Point the hub's client in this process at `hub`, with `cache` as its cache, and without retries' pauses."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(cache / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
