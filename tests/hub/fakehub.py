"""A hub on 127.0.0.1 that speaks both protocols, and misbehaves exactly as told.

`Fault`s match requests in order and are used up; `hub.log` holds every request for asserts.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from tiny_llama import LLAMA

TOKEN = "hf_good"


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path matches."""

    path: str
    times: int = 1
    method: str = "GET"
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int = -1
    """Bytes of this response's body before the connection is closed."""
    ignore_range: bool = False
    corrupt: bool = False
    """One byte is flipped, the length stays."""
    stall_s: float = 0.0
    """Silence after the first half of the body."""
    rate: int = 0
    """Bytes per second."""
    gzip: bool = False
    html: bool = False
    """A login page instead of the file."""
    wrong_range: bool = False
    when: Callable[[dict[str, str]], bool] | None = None
    used: int = 0


@dataclass
class Repo:
    """One repository; `files` maps paths to bytes, big ones are LFS."""

    files: dict[str, bytes]
    commit: str = ""
    gated: bool = False
    private: bool = False
    branches: tuple[str, ...] = ("main",)
    listing: list[dict[str, Any]] | None = None
    """Overrides the honest Hugging Face tree."""
    lfs_over: int = 4096

    def __post_init__(self) -> None:
        self.commit = self.commit or self.digest()

    def digest(self) -> str:
        whole = hashlib.sha1()
        for path, content in sorted(self.files.items()):
            whole.update(path.encode() + content)
        return whole.hexdigest()

    def is_lfs(self, path: str) -> bool:
        return len(self.files[path]) > self.lfs_over

    def etag(self, path: str) -> str:
        content = self.files[path]
        if self.is_lfs(path):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def tree(self) -> list[dict[str, Any]]:
        if self.listing is not None:
            return self.listing
        entries = []
        for path, content in self.files.items():
            sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {
                "type": "file",
                "oid": sha1,
                "size": len(content),
                "path": path,
            }
            if self.is_lfs(path):
                entry["lfs"] = {"oid": self.etag(path), "size": len(content), "pointerSize": 135}
            entries.append(entry)
        return entries


@dataclass(frozen=True)
class Seen:
    origin: str
    """hub or cdn."""
    method: str
    path: str
    range: str
    auth: bool
    status: int


class FakeHub:
    """Use as a context manager; `url` is the endpoint of both protocols."""

    def __init__(self) -> None:
        self.hf: dict[str, Repo] = {}
        self.modelscope: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.log: list[Seen] = []
        self.cdn_on = False
        self.need_token = False
        self.signature = 0
        """A CDN link is good only while it bears this number."""
        self.body_bytes = 0
        self.body_started = threading.Event()
        self._guard = threading.Lock()
        self._hub = self._serve("hub")
        self._cdn = self._serve("cdn")
        self.url = f"http://127.0.0.1:{self._hub.server_address[1]}"
        self.cdn_url = f"http://localhost:{self._cdn.server_address[1]}"

    def _serve(self, origin: str) -> ThreadingHTTPServer:
        fake = self

        class Handler(_Handler):
            hub = fake
            part = origin

        server = _Server(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def __enter__(self) -> FakeHub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()

    def fault(self, path: str, **more: Any) -> Fault:
        fault = Fault(path, **more)
        self.faults.append(fault)
        return fault

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self._guard:
            for fault in self.faults:
                fits = fault.method == method and re.search(fault.path, path)
                if fits and fault.used < fault.times:
                    fault.used += 1
                    return fault
        return None

    def seen(self, text: str = "", method: str = "GET") -> list[Seen]:
        return [s for s in self.log if text in s.path and s.method == method]

    def bodies(self, path: str) -> list[Seen]:
        """GETs of a file's bytes, by either protocol, redirects left out."""
        return [s for s in self.seen(path) if s.status in (200, 206)]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what many of the tests are about."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    part = "hub"
    protocol_version = "HTTP/1.1"
    fault: Fault | None = None

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def _answer(self, method: str) -> None:
        path = unquote(self.path)
        self.fault = self.hub.take_fault(method, path)
        if self.fault is not None and self.fault.status:
            page = b"<html>Please log in</html>" if self.fault.html else b"{}"
            self._send(self.fault.status, page, self.fault.headers)
            return
        try:
            self._route(urlsplit(self.path))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, url: Any) -> None:
        path, query = unquote(url.path), parse_qs(url.query)
        if self.part == "cdn":
            self._cdn(path, query)
        elif m := re.fullmatch(r"/api/models/(.+)/revision/(.+)", path):
            self._hf_model(m[1], m[2])
        elif m := re.fullmatch(r"/api/models/(.+)/tree/([^/]+)/?", path):
            model = self._hf(m[1], m[2])
            if model:
                self._json(model.tree())
        elif m := re.fullmatch(r"/api/models/(.+)/refs", path):
            model = self._hf(m[1], None)
            if model:
                names = [
                    {"name": b, "ref": f"refs/heads/{b}", "targetCommit": model.commit}
                    for b in model.branches
                ]
                self._json({"branches": names, "tags": [], "converts": []})
        elif path == "/api/whoami-v2":
            self._json({"name": "tester", "type": "user"})
        elif m := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            self._hf_model(m[1], "main")
        elif m := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._hf_file(m[1], m[2], m[3])
        elif m := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo/files", path):
            self._ms_files(m[1], query)
        elif m := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo", path):
            self._ms_file(m[1], query)
        else:
            self._send(404, b"{}")

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _hf(self, name: str, revision: str | None) -> Repo | None:
        if self._token() not in ("", TOKEN):
            self._send(401, b'{"error":"Invalid user token."}')
            return None
        model = self.hub.hf.get(name)
        if model is None or (model.private and not self._token()):
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        if revision is not None and revision not in (*model.branches, model.commit):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return None
        return model

    def _hf_model(self, name: str, revision: str) -> None:
        model = self._hf(name, revision)
        if model is None:
            return
        if model.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            return
        files = [{"rfilename": p} for p in model.files]
        self._json(
            {"id": name, "sha": model.commit, "siblings": files, "private": False, "tags": []}
        )

    def _hf_file(self, name: str, revision: str, path: str) -> None:
        model = self._hf(name, revision)
        if model is None:
            return
        if path not in model.files:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        tag = f'"{model.etag(path)}"'
        headers = {"ETag": tag, "X-Repo-Commit": model.commit}
        if model.is_lfs(path):
            headers |= {"X-Linked-Etag": tag, "X-Linked-Size": str(len(model.files[path]))}
            if self.hub.cdn_on:
                where = f"{self.hub.cdn_url}/hf/{name}/{path}?sig={self.hub.signature}"
                self._send(302, b"", headers | {"Location": where})
                return
        self._body(model.files[path], headers)

    def _cdn(self, path: str, query: dict[str, list[str]]) -> None:
        if query.get("sig") != [str(self.hub.signature)]:
            self._send(403, b"expired")
            return
        m = re.fullmatch(r"/hf/([^/]+/[^/]+)/(.+)", path)
        assert m is not None
        self._body(self.hub.hf[m[1]].files[m[2]], {})

    def _ms(self, name: str) -> Repo | None:
        model = self.hub.modelscope.get(name)
        if model is None:
            self._send(404, b'{"Code":10010205001,"Message":"not found","Success":false}')
        elif model.gated and not self._token():
            self._send(403, b'{"Code":10010200001,"Message":"no","Success":false}')
            return None
        return model

    def _ms_files(self, name: str, query: dict[str, list[str]]) -> None:
        model = self._ms(name)
        if model is None:
            return
        if query.get("Revision", ["master"])[0] not in ("master", *model.branches):
            self._send(404, b'{"Code":10010205002,"Message":"no revision","Success":false}')
            return
        files = [
            {
                "Type": "blob",
                "Path": p,
                "Name": p.split("/")[-1],
                "Size": len(c),
                "Sha256": hashlib.sha256(c).hexdigest(),
                "Revision": model.commit,
                "IsLFS": model.is_lfs(p),
            }
            for p, c in model.files.items()
        ]
        self._json({"Code": 200, "Success": True, "Data": {"Files": files}})

    def _ms_file(self, name: str, query: dict[str, list[str]]) -> None:
        model = self._ms(name)
        if model is None:
            return
        content = model.files.get(query["FilePath"][0])
        if content is None:
            self._send(404, b"{}")
            return
        self._body(content, {"X-Linked-ETag": hashlib.sha256(content).hexdigest()})

    def _body(self, content: bytes, headers: dict[str, str]) -> None:
        fault = self.fault or Fault("")
        first, end, status = 0, len(content), 200
        m = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if m and not fault.ignore_range:
            first = int(m[1])
            if first >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            end = min(end, int(m[2]) + 1) if m[2] else end
            status = 206
            said = first + 7 if fault.wrong_range else first
            headers = headers | {"Content-Range": f"bytes {said}-{end - 1}/{len(content)}"}
        body = content[first:end]
        if fault.html:
            body, status = b"<html>Please log in</html>", 200
        if fault.corrupt:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self._note(status)
        self.send_response(status)
        for key, value in (headers | fault.headers).items():
            self.send_header(key, value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self._write(body, fault)

    def _write(self, body: bytes, fault: Fault) -> None:
        if fault.cut_after >= 0:
            self.wfile.write(body[: fault.cut_after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        half = len(body) // 2
        step = max(1, min(65536, fault.rate // 20)) if fault.rate else 1 << 20
        sent = 0
        while sent < len(body):
            if fault.stall_s and sent >= half:
                self.hub.body_started.set()
                time.sleep(fault.stall_s)
                self.close_connection = True
                return
            stop = half if fault.stall_s and half else len(body)
            block = body[sent : min(stop, sent + step)]
            self.wfile.write(block)
            sent += len(block)
            self.hub.body_bytes += len(block)
            self.hub.body_started.set()
            if fault.rate:
                time.sleep(len(block) / fault.rate)

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _note(self, status: int) -> None:
        self.hub.log.append(
            Seen(
                self.part,
                self.command,
                unquote(self.path),
                self.headers.get("Range", ""),
                "Authorization" in self.headers or "Cookie" in self.headers,
                status,
            )
        )

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._note(status)
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def safetensors(floats: int, seed: int) -> bytes:
    """A valid safetensors file with one random float32 tensor."""
    values = np.random.default_rng(seed).random(floats, dtype=np.float32).tobytes()
    header = json.dumps(
        {f"w{seed:03d}": {"dtype": "F32", "shape": [floats], "data_offsets": [0, len(values)]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + values


def tiny_model(shards: int = 2, floats: int = 50_000, seed: int = 0) -> dict[str, bytes]:
    """The files of a llama-shaped repository: two shards of 200 kB by default."""
    config = LLAMA | {"torch_dtype": "float32"}
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    weights = {n: safetensors(floats, seed + i) for i, n in enumerate(names)}
    index = {"metadata": {}, "weight_map": {f"w{seed + i:03d}": n for i, n in enumerate(names)}}
    return {
        "README.md": b"---\nlicense: apache-2.0\nlanguage: en\n---\n# Tiny\n",
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}',
        "model.safetensors.index.json": json.dumps(index).encode(),
        **weights,
    }
