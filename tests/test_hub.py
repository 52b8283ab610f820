import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tiny import CONFIG, differing, tensors_of, tiny_bundle

from facevae import hub
from facevae.bundle import save
from facevae.errors import ModelError

COMMIT = "c0ffee" + "0" * 34
OLDER = "beef" + "1" * 36
HELD = "someone/faces", "someone/empty"
REVISIONS = {"main": COMMIT, "v1": OLDER, COMMIT: COMMIT, OLDER: OLDER}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models: the newer, and the one it replaced."""
    folder = tmp_path_factory.mktemp("models")
    paths = {COMMIT: folder / "new.safetensors", OLDER: folder / "old.safetensors"}
    save(tiny_bundle(kind="flow"), paths[COMMIT])
    save(tiny_bundle(kind="normal"), paths[OLDER])
    return paths


@pytest.fixture(scope="module")
def stand_in(models):
    """As much of the Hub as gives out files, on this machine; yields its address."""

    class Hub(BaseHTTPRequestHandler):
        def answer(self) -> None:
            match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path.split("?")[0])
            repository, revision, name = match.groups() if match else ("", "", "")
            commit = REVISIONS.get(revision, "")
            if repository not in HELD:
                self.refuse("RepoNotFound")
            elif not commit:
                self.refuse("RevisionNotFound")
            elif repository != HELD[0] or name != "model.safetensors":
                self.refuse("EntryNotFound", {"X-Repo-Commit": commit})
            else:
                data = models[commit].read_bytes()
                self.send_response(200)
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", f'"{commit[::-1]}"')
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

        do_GET = do_HEAD = answer  # noqa: N815 - http.server's own names

        def refuse(self, code: str, headers: dict[str, str] | None = None) -> None:
            self.send_response(404)
            for name, value in {"X-Error-Code": code, **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def online(tmp_path, stand_in):
    """The environment of a machine whose Hub is the stand-in, and whose cache is empty."""
    return {
        "HF_ENDPOINT": stand_in,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@pytest.fixture(scope="module", autouse=True)
def unreachable(tmp_path_factory):
    """`facevae info someone/faces` where nobody listens, begun early since it may wait long."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port  # free again in a moment
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "HF_HUB_OFFLINE": "0",
        "COLUMNS": "100",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "facevae", "info", "someone/faces"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        yield process
        process.kill()


# ---------------------------------------------------------------- what is at hand


@pytest.mark.parametrize("name", ["", "default"])
def test_the_default_is_the_embedded_model(name):
    located = hub.locate(name)
    assert located.name == "default"
    assert located.path.parts[-3:] == ("facevae", "weights", "default.safetensors")


def test_a_file_is_itself(models):
    bundle, located = hub.load_model(str(models[COMMIT]))
    assert located.path == models[COMMIT]
    assert differing(tensors_of(bundle), tensors_of(tiny_bundle())) == []


def test_a_folder_is_the_model_in_it(tmp_path):
    save(tiny_bundle(), tmp_path / "model.safetensors")
    assert hub.locate(str(tmp_path)).path == tmp_path / "model.safetensors"


def test_what_is_here_comes_before_the_hub(tmp_path, monkeypatch):
    (tmp_path / "someone" / "faces").mkdir(parents=True)
    save(tiny_bundle(), tmp_path / "someone" / "faces" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert hub.locate("someone/faces").path.resolve().parent == tmp_path / "someone" / "faces"


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save(tiny_bundle(), tmp_path / "mine.safetensors")
    assert hub.locate("~/mine.safetensors").path == tmp_path / "mine.safetensors"


@pytest.mark.parametrize(
    "name", ["nothing", "a/b.safetensors", "a/b/c", "./a/b", "user/", "user/repo@", "a b/c", "\0"]
)
def test_what_is_nowhere_is_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        hub.locate(name)
    assert str(caught.value).startswith(f"{name}: ")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no model\.safetensors in this folder"):
        hub.locate(str(tmp_path))


# ---------------------------------------------------------------- the Hub


def test_a_repository_is_downloaded_once_and_then_works_offline(facevae, online):
    first = json.loads(facevae("info", "someone/faces", "--json", **online).stdout)
    assert first["prior"]["kind"] == "flow"
    assert first["config"]["size"] == CONFIG.size
    assert first["model"]["name"] == f"someone/faces@{COMMIT[:12]}"
    offline = online | {"HF_HUB_OFFLINE": "1", "FACEVAE_MODEL": "someone/faces"}
    assert json.loads(facevae("info", "--json", **offline).stdout) == first


SCRIPT = """
import contextlib, io, json, sys
from facevae.cli import main
found = []
for name in sys.argv[1:]:
    sys.argv = ["facevae", "info", name, "--json"]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def infos(environment, *names):
    """Exit code, stdout and stderr of `facevae info NAME` for each name, all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, **environment, "COLUMNS": "100"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_revision_is_another_model_and_what_is_missing_is_said_in_one_line(online):
    tagged, no_repository, no_revision, no_file = infos(
        online, "someone/faces@v1", "someone/nobody", "someone/faces@v9", "someone/empty"
    )
    assert tagged[0] == 0
    values = json.loads(tagged[1])
    assert values["prior"]["kind"] == "normal"
    assert values["model"]["name"] == f"someone/faces@{OLDER[:12]}"
    for (code, out, err), name, reason in (
        (no_repository, "someone/nobody", "nor a repository on the Hub"),
        (no_revision, "someone/faces@v9", "no revision v9"),
        (no_file, "someone/empty", "holds no model.safetensors"),
    ):
        assert code == 1
        assert out == ""
        assert err.startswith(f"error: {name}: ")
        assert reason in err
        assert err.count("\n") == 1


def test_offline_what_was_never_downloaded_is_said_in_one_line(online):
    ((code, out, err),) = infos(online | {"HF_HUB_OFFLINE": "1"}, "someone/faces")
    assert (code, out) == (1, "")
    assert err.startswith("error: someone/faces: ")
    assert err.count("\n") == 1


def test_without_a_network_it_says_so_in_one_line(unreachable):
    out, err = unreachable.communicate(timeout=120)
    assert (unreachable.returncode, out) == (1, "")
    assert err.startswith("error: someone/faces: ")
    assert "cannot be reached" in err
    assert err.count("\n") == 1
