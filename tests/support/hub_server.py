"""A small hub on 127.0.0.1 that serves model and dataset repositories out of folders.

It speaks what huggingface_hub, transformers and datasets ask of huggingface.co when ``HF_ENDPOINT`` points here:

========  =============================================  =======================================================
GET       /api/{models|datasets}/ORG/NAME[/revision/R]   the repository: its commit and files
GET       /api/{models|datasets}/ORG/NAME/tree/R[/PATH]  a folder's files, or all below it (``recursive``)
POST      /api/{models|datasets}/ORG/NAME/paths-info/R   the same of some paths
HEAD GET  [/datasets]/ORG/NAME/resolve/R/FILE            a file; weights and parquet redirect to the next line
HEAD GET  /storage/SHA256                                a large file's bytes, as from the hub's storage
========  =============================================  =======================================================

Errors carry the hub's ``X-Error-Code``, and a file or an error of a known revision its ``X-Repo-Commit``.
A missing repository is a 401, as the hub says to a client without a token.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)/?(.*))?")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
LARGE = (".safetensors", ".bin", ".parquet")
"""Ends of the names of files that the hub keeps outside git."""


class HubError(Exception):
    """An answer that is not 200: its status, the hub's word for it, and the commit where one is known."""

    def __init__(self, status: int, code: str, commit: str | None = None):
        super().__init__(code)
        self.status, self.code, self.commit = status, code, commit


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit."""

    kind: str
    name: str
    commit: str
    folder: Path

    def file(self, path: str) -> Path:
        file = self.folder / path
        if not file.is_file():
            raise HubError(404, "EntryNotFound", self.commit)
        return file

    def info(self) -> dict:
        files = [entry["path"] for entry in self.tree("", recursive=True) if entry["type"] == "file"]
        return {
            "_id": self.commit[:24],
            "id": self.name,
            "sha": self.commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path} for path in files],
        }

    def tree(self, path: str, recursive: bool) -> list[dict]:
        if not (self.folder / path).is_dir():
            raise HubError(404, "EntryNotFound", self.commit)
        found = (self.folder / path).glob("**/*" if recursive else "*")
        return [self.entry(str(each.relative_to(self.folder))) for each in sorted(found)]

    def paths_info(self, paths: list[str]) -> list[dict]:
        return [self.entry(path) for path in paths if (self.folder / path).exists()]

    def entry(self, path: str) -> dict:
        file = self.folder / path
        if file.is_dir():
            return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
        size, oid = file.stat().st_size, git_hash(file)
        large = {"lfs": {"oid": sha256(file), "size": size, "pointerSize": 134}} if file.suffix in LARGE else {}
        return {"type": "file", "path": path, "size": size, "oid": oid, **large}


class Hub:
    """The server, and the repositories it holds; ``with Hub() as hub`` starts and stops it.

    Attributes:
        requests: every request and its status, such as ``GET /api/models/org/name 200``.
    """

    def __init__(self):
        self.requests: list[str] = []
        self.snapshots: dict[tuple[str, str], dict[str, Snapshot]] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # Clients read a file's headers off a redirect only where it leads to another host, so storage has its own name.
        self.storage = f"http://localhost:{self.server.server_port}/storage"

    def add(self, kind: str, name: str, folder: Path, revision: str = "main") -> str:
        """Serve a folder as ``models`` or ``datasets`` repository ORG/NAME; returns the revision's commit."""
        commit = hashlib.sha1(f"{kind}/{name}@{revision}".encode()).hexdigest()
        snapshot = Snapshot(kind, name, commit, folder)
        self.snapshots.setdefault((kind, name), {}).update({revision: snapshot, commit: snapshot})
        return commit

    def find(self, kind: str, name: str, revision: str) -> Snapshot:
        if (kind, name) not in self.snapshots:
            raise HubError(401, "RepoNotFound")
        if revision not in self.snapshots[kind, name]:
            raise HubError(404, "RevisionNotFound")
        return self.snapshots[kind, name][revision]

    def stored(self, digest: str) -> Path:
        for snapshot in (each for revisions in self.snapshots.values() for each in revisions.values()):
            for file in snapshot.folder.rglob("*"):
                if file.suffix in LARGE and sha256(file) == digest:
                    return file
        raise HubError(404, "EntryNotFound")

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        try:
            if api := API.fullmatch(url.path):
                self._api(*api.groups(), parse_qs(url.query))
            elif resolve := RESOLVE.fullmatch(url.path):
                self._file(*resolve.groups())
            elif url.path.startswith("/storage/"):
                self._answer(200, self.hub.stored(url.path.rpartition("/")[2]).read_bytes())
            else:
                raise HubError(404, "NotFound")
        except HubError as error:
            commit = {"X-Repo-Commit": error.commit} if error.commit else {}
            self._answer(error.status, b"", {"X-Error-Code": error.code, "X-Error-Message": error.code, **commit})

    do_HEAD = do_POST = do_GET  # noqa: N815

    def _api(self, kind: str, name: str, what: str | None, revision: str | None, path: str | None, query: dict):
        snapshot = self.hub.find(kind, name, unquote(revision or "main"))
        if what == "tree":
            found = snapshot.tree(unquote(path or ""), query.get("recursive", ["false"])[0].lower() == "true")
        elif what == "paths-info":
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            found = snapshot.paths_info(form.get("paths", []))
        else:
            found = snapshot.info()
        self._answer(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _file(self, dataset: str | None, name: str, revision: str, path: str):
        snapshot = self.hub.find("datasets" if dataset else "models", name, unquote(revision))
        file = snapshot.file(unquote(path))
        headers = {"X-Repo-Commit": snapshot.commit, "ETag": f'"{git_hash(file)}"'}
        if file.suffix in LARGE:
            size, digest = str(file.stat().st_size), sha256(file)
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": size}
            headers["Location"] = f"{self.hub.storage}/{digest}"
            self._answer(302, b"", headers)
        else:
            self._answer(200, file.read_bytes(), headers)

    def _answer(self, status: int, body: bytes, headers: dict | None = None):
        self.hub.requests.append(f"{self.command} {self.path} {status}")
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing: requests are kept in ``Hub.requests``."""


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def git_hash(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
