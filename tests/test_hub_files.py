"""Data sets on the Hub, by a stand-in on this machine: which files, how much of them, and failures."""

import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest
from conftest import draw_face
from huggingface_hub import constants

from facevae.data import dataset, hub_files, pictures
from facevae.data.hub_files import HubFile, Unreachable, find_hub_files, is_url, repository_of
from facevae.errors import DataError

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """What the stand-in holds, by repository, revision and path, and what it was asked for."""

    def __init__(self):
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.asked: list[str] = []
        self.sent_bytes = 0
        self.refuse_after = 10**9
        self.commit = COMMIT

    def listing(self, repository, revision):
        return self.files.get(repository, {}).get("main" if revision == self.commit else revision)


def entry(path, content):
    return {"type": "file", "path": path, "size": len(content), "oid": "e"}


class Handler(BaseHTTPRequestHandler):
    """As much of the Hub as lists files and gives parts of them."""

    def answer(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            files = self.server.known.listing(match[1], match[2]) or {}
            self.json([entry(p, b) for p, b in files.items() if p.startswith(match[3])])
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/(.+)", path):
            files = self.server.known.listing(match[1], match[2]) or {}
            paths = parse_qs(sent.decode()).get("paths", [])
            self.json([entry(p, files[p]) for p in paths if p in files])
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.part(self.server.known.listing(match[1], match[2])[match[3]], match[3])
        else:
            self.send(404, b"{}")

    do_GET = do_POST = do_HEAD = answer  # noqa: N815 - http.server's own names

    def info(self, repository, revision):
        files = self.server.known.listing(repository, revision)
        if repository not in self.server.known.files:
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif files is None:
            self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [
                {"rfilename": p, "size": len(b), "blobId": str(hash(b))} for p, b in files.items()
            ]
            sha = self.server.known.commit if revision == "main" else revision
            self.json({"id": repository, "sha": sha, "siblings": siblings})

    def part(self, content, name):
        self.server.known.asked.append(name)
        if len(self.server.known.asked) > self.server.known.refuse_after:
            self.send(404, b"")
            return
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
        wanted = content[int(first) : int(last) + 1]
        self.server.known.sent_bytes += len(wanted)
        span = f"bytes {first}-{last}/{len(content)}"
        self.send(206, wanted, {"Content-Range": span, "X-Repo-Commit": COMMIT, "ETag": '"e"'})

    def json(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, code, content, headers=None):
        self.send_response(code)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on this machine in the place of the real one."""
    known = Hub()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.known = known
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
    hub_files._hub.cache_clear()
    yield known
    server.shutdown()
    server.server_close()
    hub_files._hub.cache_clear()


def parquet(first, last, rows=4):
    """Drawn faces `first` to `last` as a Parquet file's bytes."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    def png(seed):
        file = io.BytesIO()
        draw_face(seed, 32).save(file, "PNG")
        return file.getvalue()

    structs = [{"bytes": png(i), "path": f"{i:03}.png"} for i in range(first, last)]
    file = io.BytesIO()
    pq.write_table(pa.table({"image": structs}), file, row_group_size=rows)
    return file.getvalue()


def paths(url):
    return [file.path for file in find_hub_files(url)]


# ---------------------------------------------------------------- which files

SPLITS = [
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/test-00000-of-00001.parquet",
    "small/train/0000.parquet",
    "training.parquet",
    "README.md",
    "images.zip",
]


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        ("", [*SPLITS[:2], SPLITS[3]]),
        ("/", [*SPLITS[:2], SPLITS[3]]),
        ("/train", [*SPLITS[:2], SPLITS[3]]),
        ("/test", [SPLITS[2]]),
        ("/data", [SPLITS[2], *SPLITS[:2]]),
        ("/data/train", SPLITS[:2]),
        ("/small/train", [SPLITS[3]]),
        ("/training.parquet", [SPLITS[4]]),
        ("@main/test", [SPLITS[2]]),
    ],
)
def test_a_split_or_a_path_chooses_files(hub, below, expected):
    hub.files["some/faces"] = {"main": dict.fromkeys(SPLITS, b"")}
    assert sorted(paths(f"hf://datasets/some/faces{below}")) == sorted(expected)


def test_without_a_train_split_it_is_all(hub):
    hub.files["some/faces"] = {"main": {"a/x.parquet": b"", "b/y.parquet": b"", "z.csv": b""}}
    assert paths("hf://datasets/some/faces") == ["a/x.parquet", "b/y.parquet"]


def test_where_there_is_no_parquet_it_is_the_hubs_own_conversion(hub):
    converted = {"default/train/0000.parquet": b"", "default/test/0000.parquet": b""}
    hub.files["some/faces"] = {"main": {"a.zip": b""}, "refs/convert/parquet": converted}
    assert paths("hf://datasets/some/faces") == ["default/train/0000.parquet"]
    with pytest.raises(DataError, match="no Parquet files in there"):
        find_hub_files("hf://datasets/some/faces@main")


def test_a_revision_is_a_branch_a_commit_or_a_reference(hub):
    hub.files["some/faces"] = {
        "v1.0": {"a.parquet": b""},
        "refs/convert/parquet": {"b.parquet": b""},
    }
    assert paths("hf://datasets/some/faces@v1.0") == ["a.parquet"]
    assert paths("hf://datasets/some/faces@refs/convert/parquet") == ["b.parquet"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hf://some/faces", "write it as hf://datasets/owner/name"),
        ("hf://datasets/faces", "write it as hf://datasets/owner/name"),
        ("hf://datasets/../faces", "write it as hf://datasets/owner/name"),
        ("hf://datasets/some/..", "write it as hf://datasets/owner/name"),
        ("hf://datasets/some/faces@..", "write it as hf://datasets/owner/name"),
        ("hf://datasets/some/faces@../../other", "write it as hf://datasets/owner/name"),
        ("hf://datasets/some/nothing", "no such data set on the Hub"),
        ("hf://datasets/some/faces@v9", "the repository has no such revision"),
        (
            "hf://datasets/some/faces/dev",
            "no split or path 'dev'; there are data with train-0.parquet",
        ),
        ("hf://datasets/some/faces/dat/train", "no split or path 'dat/train'"),
        ("hf://datasets/some/zips", "hf download --repo-type dataset some/zips"),
    ],
)
def test_what_is_not_there_is_one_line(hub, url, said):
    hub.files["some/faces"] = {"main": {"data/train-0.parquet": b""}}
    hub.files["some/zips"] = {"main": {"a.zip": b""}}
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        find_hub_files(url)
    assert str(caught.value).startswith(url)
    assert "\n" not in str(caught.value)


def test_what_is_an_address():
    assert is_url("hf://datasets/a/b")
    assert not is_url("data/hf")
    assert repository_of("hf://datasets/a-b/c.d@v1/train") == "a-b/c.d"


# ---------------------------------------------------------------- as training data


def load(tmp_path, url, **more):
    return dataset.load_faces([url], 32, cache=tmp_path / "cache", **more)


@pytest.fixture
def faces(hub):
    """A data set of 24 faces in two files."""
    files = {"data/train-0.parquet": parquet(0, 12), "data/train-1.parquet": parquet(12, 24)}
    hub.files["some/faces"] = {"main": files}
    return "hf://datasets/some/faces"


def test_it_is_the_same_data_as_the_same_files_here(hub, faces, tmp_path):
    for path, content in hub.files["some/faces"]["main"].items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    expected = dataset.load_faces([tmp_path / "data"], 32, cache=tmp_path / "other")
    found = load(tmp_path, faces)
    assert (found.stems, found.fingerprint) == (expected.stems, expected.fingerprint)
    assert found.held_out.tolist() == expected.held_out.tolist()
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    # no second copy of it
    assert not (tmp_path / "hub cache").exists()
    [entry] = dataset.list_cache(tmp_path / "cache")
    assert entry.sources == [faces]


def test_it_is_fetched_once_and_again_when_it_has_changed(hub, faces, tmp_path):
    first = load(tmp_path, faces)
    hub.asked.clear()
    hub.files["some/faces"]["main"]["README.md"] = b"another commit of the same files"
    hub.commit = "beef" + "0" * 36
    assert load(tmp_path, faces).fingerprint == first.fingerprint
    assert hub.asked == []
    hub.files["some/faces"]["main"]["data/train-1.parquet"] = parquet(30, 42)
    hub.commit = "f00d" + "0" * 36
    assert load(tmp_path, faces).fingerprint != first.fingerprint


def test_a_connection_that_fails_loses_nothing(hub, faces, tmp_path, monkeypatch):
    whole = dataset.load_faces([faces], 32, cache=tmp_path / "other")
    hub.asked.clear()
    hub.refuse_after = 3  # both lists of names, and the first file's pictures
    with pytest.raises(Unreachable, match=r"train-1\.parquet: the Hub does not give it"):
        load(tmp_path, faces)
    hub.asked.clear()
    hub.refuse_after = 10**9
    asked = []
    read = pictures.read_rows
    monkeypatch.setattr(
        pictures, "read_rows", lambda f, rows: asked.append((f.path, rows)) or read(f, rows)
    )
    found = load(tmp_path, faces)
    assert asked == [("data/train-1.parquet", list(range(12)))]
    assert found.fingerprint == whole.fingerprint
    assert found.skipped == []


def test_what_was_converted_before_will_do_without_a_network(faces, tmp_path, monkeypatch):
    first = load(tmp_path, faces)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load(tmp_path, faces).fingerprint == first.fingerprint
    with pytest.raises(Unreachable, match="offline mode"):
        load(tmp_path, f"{faces}/train")
    with pytest.raises(Unreachable, match="offline mode"):
        dataset.load_faces([faces], 64, cache=tmp_path / "cache")


def test_a_file_that_is_no_table_is_named(hub, tmp_path):
    pytest.importorskip("pyarrow")
    hub.files["some/faces"] = {"main": {"a.parquet": b"what is no Parquet"}}
    with pytest.raises(
        DataError, match=r"hf://datasets/some/faces@c0ffee000000/a\.parquet: cannot be"
    ):
        load(tmp_path, "hf://datasets/some/faces")


def test_only_what_is_asked_for_is_fetched(hub):
    content = bytes(range(256)) * 4096
    hub.files["some/faces"] = {"main": {"a.parquet": content}}
    with HubFile("some/faces", COMMIT, "a.parquet", len(content), "").open(1000) as file:
        file.seek(-300, io.SEEK_END)
        assert file.read(10) == content[-300:-290]
        assert file.seek(5) == file.tell() == 5
        assert file.read(3) == content[5:8]
    assert len(hub.asked) == 2
    assert hub.sent_bytes < 3000
