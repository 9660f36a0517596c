"""A hub on loopback that answers what the hub's client asks, so that downloads are tested through that very client."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

COMMIT = "c0ffee" * 6 + "c0ff"


class Imitation:
    """The repository's files, and the requests that came: (method, path, Range header)."""

    def __init__(self, files: dict[str, bytes], kind: str = "model", repository: str = "someone/tiny") -> None:
        self.files, self.prefix, self.repository = dict(files), "" if kind == "model" else f"/{kind}s", repository
        self.api = f"/api/{kind}s/{repository}"
        self.requests: list[tuple[str, str, str]] = []
        self.gated = False
        self.endpoint = ""

    def downloads(self) -> list[str]:
        """The files that were fetched, in order."""
        return [path.split(f"/resolve/{COMMIT}/")[1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]

    def answer(self, method: str, path: str, form: dict[str, list[str]], wanted: str) -> tuple[int, dict[str, str], bytes]:
        self.requests.append((method, path, wanted))
        if self.gated:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "log in"}, b""
        if path.startswith(f"{self.api}/revision/"):
            return 200, {}, json.dumps({"id": self.repository, "sha": COMMIT, "siblings": []}).encode()
        if path.startswith(f"{self.api}/paths-info/"):
            return 200, {}, json.dumps([self._fact(p) for p in form.get("paths", []) if p in self.files]).encode()
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        body = self.files[name]
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not wanted:
            return 200, headers, body
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        return 206, headers | {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}, body[start:]

    def _fact(self, path: str) -> dict[str, object]:
        body = self.files[path]
        fact: dict[str, object] = {"type": "file", "path": path, "size": len(body), "oid": "0" * 40}
        if path.endswith(".safetensors"):
            fact["lfs"] = {"size": len(body), "oid": hashlib.sha256(body).hexdigest(), "pointerSize": 130}
        return fact


@contextmanager
def serving(hub: Imitation) -> Iterator[Imitation]:
    """Serve `hub` on a free port; its address is then in `hub.endpoint`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            form = parse_qs(self.rfile.read(length).decode()) if length else {}
            status, headers, body = hub.answer(self.command, unquote(self.path).split("?")[0], form, self.headers.get("Range", ""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = _reply

        def log_message(self, *arguments: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
