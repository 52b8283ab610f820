"""Models are pulled from olah, an independent mirror of the Hub that serves git repositories."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time

import pytest
import stand_in
from tiny import tiny_bundle

from facevae.models.bundle import save
from facevae.sharing.card import Licence
from facevae.sharing.package import write_package

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("olah") is None or shutil.which("git") is None,
    reason="needs olah (of the extra 'test') and git",
)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """The mirror's address, and two commits of `someone/faces`: tag v1 and the newest."""
    folder = tmp_path_factory.mktemp("mirror")
    repository = folder / "models" / "someone" / "faces"
    commits = []
    for kind in ("normal", "flow"):
        bundle = tiny_bundle(kind=kind)
        save(bundle, folder / "model.safetensors")
        source = folder / "model.safetensors"
        write_package(bundle, source, "someone/faces", Licence("mit"), repository)
        git(repository, "init", "-q", "-b", "main")
        git(repository, "add", ".")
        git(repository, "commit", "-q", "-m", kind)
        if not commits:
            git(repository, "tag", "v1")
        commits.append(git(repository, "rev-parse", "HEAD"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "olah.toml").write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "cache"\n'
        f"mirrors-path = [{json.dumps(str(folder))}]\n[accessibility]\noffline = true\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "olah.server", "-c", "olah.toml"],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(port, process, folder / "log")
        yield f"http://127.0.0.1:{port}", *commits
    finally:
        process.terminate()
        process.wait(timeout=30)


def git(folder, *arguments):
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def wait_for(port, process, log):
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(log.read_text())


def test_a_mirror_gives_out_what_a_push_would_publish(mirror, tmp_path):
    address, older, newest = mirror
    with stand_in.Shell(stand_in.environment(address, tmp_path / "hf")) as shell:
        pulled = json.loads(shell("pull someone/faces --json").out)
        assert pulled["commit"] == newest
        assert json.loads(shell("info someone/faces --json").out)["prior"]["kind"] == "flow"
        for revision in ("v1", older):
            named = json.loads(shell(f"info someone/faces@{revision} --json").out)
            assert named["prior"]["kind"] == "normal"
            assert named["model"]["name"] == f"someone/faces@{older[:12]}"
        for name in ("someone/faces@v9", "someone/nobody"):
            refused = shell(f"pull {name}")
            assert (refused.code, refused.out) == (1, "")
            assert refused.err.startswith(f"error: {name}: ")
            assert refused.err.count("\n") == 1
