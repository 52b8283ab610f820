"""As much of the Hugging Face Hub as takes models and gives them out, on this machine."""

import base64
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from one_process import ANSWER, Done

TOKEN = "hf_of_someone"


@dataclass
class Repository:
    """Commits by their hash, oldest first, each a dictionary of files; branches and tags by name."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], ref: str = "main", message: str = "") -> str:
        commit = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[commit] = files
        self.refs[ref] = commit
        self.messages.append(message)
        return commit

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.refs["main"]]


class StandIn(ThreadingHTTPServer):
    """`repositories` are what it holds; `requests` is what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.seconds = 0.0  # that it takes to answer

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def blob_name(data: bytes) -> str:
    """What git calls a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        time.sleep(self.server.seconds)
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2].replace("%2F", "/"), match[3])
        else:
            self._answer(404)

    do_HEAD = do_GET  # noqa: N815 - http.server's own name

    def do_POST(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        held = self.server.repositories
        if self.path == "/api/validate-yaml":
            errors = [] if b"license: bad" not in body else [{"message": '"license" is not one'}]
            self._json({"errors": errors, "warnings": []}, 400 if errors else 200)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            is_private = asked.get("visibility") == "private" or bool(asked.get("private"))
            held[name] = Repository(private=is_private)
            held[name].commit({".gitattributes": b""})
            self._json({"url": f"{self.server.address}/{name}", "id": name})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", self.path):
            held[match[1]].refs[match[2]] = held[match[1]].refs["main"]
            self._json({})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self.path):
            files = held[match[1]].commits[held[match[1]].refs[match[2]]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            names = [file["path"] for file in json.loads(body)["files"]]
            known = [{"oid": blob_name(files[name])} if name in files else {} for name in names]
            told = zip(names, known, strict=True)
            self._json({"files": [{"path": name, **modes, **oid} for name, oid in told]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^?]+).*", self.path):
            self._commit(held[match[1]], match[2], [json.loads(x) for x in body.splitlines()])
        else:
            self._answer(404)

    def _commit(self, repository: Repository, branch: str, lines: list[dict]) -> None:
        header = lines[0]["value"]
        if header.get("parentCommit") != repository.refs[branch]:
            self._answer(412, {"X-Error-Message": "A commit has happened since"})
            return
        files = dict(repository.commits[repository.refs[branch]])
        for line in lines[1:]:
            path = line["value"]["path"]
            if line["key"] == "file":
                files[path] = base64.b64decode(line["value"]["content"])
            else:
                assert line["key"] == "deletedFile"
                del files[path]
        commit = repository.commit(files, branch, header["summary"])
        self._json({"commitUrl": f"{self.server.address}/x/y/commit/{commit}", "commitOid": commit})

    def _found(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and the commit, or None with the refusal already sent."""
        found = self.server.repositories.get(name)
        may_read = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not may_read):
            self._answer(404 if may_read else 401, {"X-Error-Code": "RepoNotFound"})
        elif found.gated:
            self._answer(403, {"X-Error-Code": "GatedRepo"})
        elif revision not in found.refs and revision not in found.commits:
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return found, found.refs.get(revision, revision)
        return None

    def _info(self, name: str, revision: str) -> None:
        if found := self._found(name, revision):
            files = [{"rfilename": path} for path in found[0].commits[found[1]]]
            about = {"id": name, "private": found[0].private, "tags": [], "downloads": 0}
            self._json({**about, "sha": found[1], "siblings": files})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if not (found := self._found(name, revision)):
            return
        commit, files = found[1], found[0].commits[found[1]]
        if path not in files:
            self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        etag = hashlib.sha256(files[path]).hexdigest()
        self._answer(200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, files[path])

    def _json(self, value: object, code: int = 200) -> None:
        self._answer(code, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _answer(self, code: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running() -> Iterator[StandIn]:
    """A stand-in that listens."""
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def environment(address: str, home: object, **more: str) -> dict[str, str]:
    """That of a machine whose Hub is at `address`, with its cache and login in `home`."""
    return {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": "",
        **more,
    }


SCRIPT = f"""
{ANSWER}
import os
from facevae.cli import main
for line in sys.stdin:
    asked = json.loads(line)
    os.chdir(asked["folder"])
    os.environ.update(asked["environment"])
    print(json.dumps(answer(main, asked["arguments"])), flush=True)
"""


class Shell:
    """Runs commands of facevae in one process, one after another, since starting one takes seconds.

    What the Hub's client reads when it is imported, as `HF_ENDPOINT`, is that of `environment`.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.home = Path(environment["HF_HOME"])
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "100", **environment},
        )

    def __call__(
        self, command: str, folder: str | os.PathLike[str] = ".", **environment: str
    ) -> Done:
        """`facevae COMMAND` in `folder`, with that environment from now on."""
        assert self._process.stdin
        assert self._process.stdout
        asked = {
            "arguments": shlex.split(command),
            "folder": str(Path(folder).resolve()),
            "environment": environment,
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Done(*json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)
