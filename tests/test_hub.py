"""Names of models, and the Hub as a stand-in on this machine gives it out."""

import dataclasses
import hashlib
import json
import re
import shutil
import time
from pathlib import Path

import pytest
import safetensors.torch
import stand_in
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from stand_in import TOKEN, Repository
from tiny import CONFIG, differing, tensors_of, tiny_bundle

from facevae.errors import ModelError
from facevae.models import hub
from facevae.models.bundle import save
from facevae.models.loading import load_model
from facevae.system.hub_client import hushed


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models: the newer, and the one it replaced."""
    folder = tmp_path_factory.mktemp("models")
    paths = {kind: folder / f"{kind}.safetensors" for kind in ("flow", "normal")}
    for kind, path in paths.items():
        save(tiny_bundle(kind=kind), path)
    return paths


@pytest.fixture(scope="module")
def server(models):
    """The Hub: `someone/faces` with its versions, and repositories with one fault each."""
    sound = models["flow"].read_bytes()
    faults = {
        "empty": {},
        "other": {"model.safetensors": safetensors.torch.save({"weight": torch.zeros(1)})},
        "cut": {"model.safetensors": sound[:-100]},
        "text": {"model.safetensors": b"version https://git-lfs.github.com/spec/v1"},
    }
    with stand_in.running() as server:
        held = server.repositories
        held["someone/faces"] = Repository()
        held["someone/faces"].commit({"model.safetensors": models["normal"].read_bytes()}, "v1")
        held["someone/faces"].commit({"model.safetensors": sound, "config.json": b"{}"})
        for name, files in faults.items():
            held[f"someone/{name}"] = Repository()
            held[f"someone/{name}"].commit(files)
        held["someone/secret"] = Repository(private=True)
        held["someone/secret"].commit({"model.safetensors": sound})
        held["someone/gated"] = Repository(gated=True)
        held["someone/gated"].commit({"model.safetensors": sound})
        yield server


@pytest.fixture
def online(shell):
    """Runs commands where the Hub is the stand-in, and its client's cache is empty."""
    shutil.rmtree(shell.home, ignore_errors=True)
    return shell


# ---------------------------------------------------------------- what is at hand


@pytest.mark.parametrize("name", ["", "default"])
def test_the_default_is_the_embedded_model(name):
    located = hub.locate(name)
    assert located.name == "default"
    assert located.path.parts[-3:] == ("facevae", "weights", "default.safetensors")


def test_a_file_is_itself(models):
    bundle, located = load_model(str(models["flow"]))
    assert located.path == models["flow"]
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
    "name",
    [
        *("nothing", "a/b.safetensors", "a/b/c", "./a/b", "user/", "user/repo@", "a b/c", "\0"),
        *("../a", "a/..", "a/b@../../c", "a/b@/etc/passwd", "a/b@v/../../c", "a/b@.git"),
    ],
)
def test_what_is_nowhere_is_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        hub.locate(name)
    assert caught.value.args[0].startswith(f"{name}: ")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(
        ModelError, match=r"no model\.safetensors in this folder; name a model file, or"
    ):
        hub.locate(str(tmp_path))


# ---------------------------------------------------------------- the Hub


def test_a_repository_is_downloaded_once_and_then_works_offline(online, server):
    server.requests.clear()
    commit = server.repositories["someone/faces"].refs["main"]
    first = online("info someone/faces --json")
    values = json.loads(first.out)
    assert values["prior"]["kind"] == "flow"
    assert values["config"]["size"] == CONFIG.size
    assert values["model"]["name"] == f"someone/faces@{commit[:12]}"
    assert online("info someone/faces --json") == first
    # the same place, told with the whole commit
    pulled = online(f"pull someone/faces@{commit} --json")
    assert json.loads(pulled.out) == {
        "model": values["model"],
        "outputs": [values["model"]["path"]],
        "commit": commit,
    }
    asked = [request.split("/")[0] + request.rsplit("/", 1)[1] for request in server.requests]
    assert asked.count("GET model.safetensors") == 1
    # a use of what is current asks once, by the file by which the Hub counts; a commit never asks
    assert asked[-1] == "HEAD config.json"
    assert asked.count("HEAD config.json") == 2

    environment = stand_in.environment(server.address, online.home, HF_HUB_OFFLINE="1")
    with stand_in.Shell(environment) as offline:
        assert offline("info --json", FACEVAE_MODEL="someone/faces") == first
        check_refusal(offline("info someone/faces@v1"), "someone/faces@v1", "HF_HUB_OFFLINE")


def check_refusal(done, name, reason):
    """One line that begins with the name, maybe with the commit that it stands for."""
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith((f"error: {name}: ", f"error: {name}@")), done.err
    assert reason in done.err
    assert done.err.count("\n") == 1, done.err
    assert "snapshots" not in done.err


def test_a_newer_model_takes_the_place_of_the_cached_one_and_the_old_stays_by_its_commit(
    online, server, models
):
    held = server.repositories["someone/news"] = Repository()
    old = held.commit({"model.safetensors": models["normal"].read_bytes()})
    online("pull someone/news")
    held.commit({"model.safetensors": models["flow"].read_bytes()})
    for name, kind in (("someone/news", "flow"), (f"someone/news@{old}", "normal")):
        assert json.loads(online(f"info {name} --json").out)["prior"]["kind"] == kind


def test_a_tag_is_another_model(online):
    assert json.loads(online("info someone/faces@v1 --json").out)["prior"]["kind"] == "normal"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("someone/nobody", "no such repository on the Hub"),
        ("someone/secret", "a private one needs `hf auth login`"),
        ("someone/faces@v9", "no such revision"),
        ("someone/empty", "holds no model.safetensors"),
        ("someone/gated", "gated"),
        ("someone/other", "not a facevae model"),
        ("someone/cut", "not a sound safetensors file"),
        ("someone/text", "not a sound safetensors file"),
        ("some--one/faces", "--"),
        ("a/b@../../c", "not on the Hub"),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_one_line(online, name, reason):
    check_refusal(online(f"pull {name}"), name, reason)


def test_a_private_repository_is_read_with_the_users_token(online):
    assert online("pull someone/secret -q", HF_TOKEN=TOKEN).code == 0
    (online.home / "token").write_text(TOKEN)  # where `hf auth login` keeps it
    assert online("pull someone/secret -q --force", HF_TOKEN="").code == 0


def test_a_damaged_copy_in_the_cache_is_said_and_downloaded_again_by_force(online):
    path = Path(online("pull someone/faces").out.strip())
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    told = online("info someone/faces")
    check_refusal(told, "someone/faces", "copy in the cache is damaged")
    online(re.search(r"`facevae (pull .* --force)`", told.err)[1])
    assert path.read_bytes() == whole
    assert online("info someone/faces").code == 0


def test_a_cache_that_cannot_be_written_is_named(online):
    online.home.write_text("a file")
    try:
        check_refusal(online("pull someone/faces"), "someone/faces", "HF_HOME")
    finally:
        online.home.unlink()


def test_without_an_answer_the_cached_model_is_used_soon_and_another_is_refused_soon(
    online, server
):
    online("pull someone/faces")
    server.seconds = 30.0
    begun = time.monotonic()
    try:
        assert online("info someone/faces --json", HF_HUB_ETAG_TIMEOUT="1").code == 0
        for command in ("info someone/other", "pull someone/faces --force"):
            check_refusal(online(command), command.split()[1], "the Hub cannot be reached")
    finally:
        server.seconds = 0.0
        online("--version", HF_HUB_ETAG_TIMEOUT="")
    assert time.monotonic() - begun < 15


def test_where_nobody_listens_it_says_so_in_one_line_and_soon(tmp_path):
    with stand_in.running() as server:
        address = server.address  # free again in a moment
    with stand_in.Shell(stand_in.environment(address, tmp_path / "hf")) as alone:
        begun = time.monotonic()
        check_refusal(alone("info someone/faces"), "someone/faces", "cannot be reached")
        # the client's own retries would take more than twenty, and importing it takes some
        assert time.monotonic() - begun < 15


# ---------------------------------------------------------------- official weights


@pytest.fixture
def aliased(models, tmp_path, monkeypatch):
    """The table with one name in it; the file is in the client's cache, as if downloaded before."""
    commit = "c0ffee" + "0" * 34
    digest = hashlib.sha256(models["flow"].read_bytes()).hexdigest()
    monkeypatch.setitem(hub.ALIASES, "small", hub.Alias("someone/small", commit, digest))
    path = tmp_path / "snapshots" / commit / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(models["flow"].read_bytes())
    asked = []

    def fetch(repository, revision, *, force):
        asked.append((repository, revision, force))
        return path

    monkeypatch.setattr(hub, "_fetch", fetch)
    return path, asked


def test_an_alias_is_one_commit_of_its_repository(aliased):
    path, asked = aliased
    bundle, located = load_model("small")
    assert asked == [("someone/small", "c0ffee" + "0" * 34, False)]
    assert located == hub.Located(path, "someone/small@c0ffee000000", "c0ffee" + "0" * 34)
    assert differing(tensors_of(bundle), tensors_of(tiny_bundle())) == []


def test_an_alias_refuses_any_other_file_in_one_line(aliased):
    path, _ = aliased
    save(dataclasses.replace(tiny_bundle(), provenance={}), path)
    with pytest.raises(ModelError) as caught:
        load_model("small")
    assert str(caught.value).startswith("small: someone/small@c0ffee000000 is not the file")
    assert "--force" in str(caught.value)


@pytest.mark.usefixtures("aliased")
def test_aliases_are_named_only_where_there_are_any(monkeypatch):
    with pytest.raises(ModelError, match="or 'small' or 'default'"):
        hub.locate("nothing")
    monkeypatch.delitem(hub.ALIASES, "small")
    with pytest.raises(ModelError, match=r"\[@revision\] or 'default'$"):
        hub.locate("nothing")
    with pytest.raises(ModelError, match=r"default: not on the Hub; name user/repo\[@revision\]$"):
        hub.pull("default")


def test_an_alias_names_a_commit_and_a_digest_in_full():
    for alias in hub.ALIASES.values():
        assert len(alias.commit) == 40
        assert len(alias.sha256) == 64
        assert hub._REPOSITORY.fullmatch(f"{alias.repository}@{alias.commit}")


# ---------------------------------------------------------------- what its client shows


def test_the_clients_progress_is_hidden_only_where_that_is_asked_for_and_meanwhile():
    seen = []
    for progress in (True, False):
        before = are_progress_bars_disabled()
        with hushed(progress=progress):
            seen.append(are_progress_bars_disabled())
        assert are_progress_bars_disabled() == before
    assert seen == [False, True]
