"""A data set is the same however it is stored, converted once, and split by names alone."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_images import DAMAGED

from facevae.data import dataset
from facevae.data.conversion import INDEX
from facevae.data.pictures import find_files
from facevae.errors import DataError


def save_noise(path, seed, size=24):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def pack(shard, folder):
    with tarfile.open(shard, "w") as tar:
        # in a different order, which must not matter
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                tar.add(file, file.relative_to(folder))


def add_member(tar, name, content=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


def png_bytes(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def load(tmp_path, *sources, size=32, progress=lambda *_: None):
    return dataset.load_faces(list(sources), size, cache=tmp_path / "cache", progress=progress)


# ---------------------------------------------------------------- loading


def test_pixels_are_those_of_the_pictures(tmp_path):
    folder = tmp_path / "faces"
    pixels = {f"{i:03}": save_noise(folder / f"{i:03}.png", i, size=32) for i in range(20)}
    faces = load(tmp_path, folder)
    assert faces.size == 32
    assert faces.skipped == []
    for row in [*faces.train, *faces.held_out]:
        np.testing.assert_array_equal(faces.pixels[row], pixels[faces.stems[row]])
    assert sorted(faces.stems) == sorted(pixels)


@pytest.mark.parametrize("places", [("left/deep", "right"), (".", ".")], ids=["deep", "flat"])
def test_a_folder_and_a_shard_of_the_same_files_are_the_same_data(tmp_path, places):
    folder, shards = tmp_path / "faces", tmp_path / "shards"
    for i in range(30):
        save_noise(folder / places[i % 2] / f"{i:03} ë.png", i)
    (folder / places[0] / "broken.png").write_text("no picture")
    shards.mkdir()
    pack(shards / "faces.tar", folder)
    from_folder, from_shard = load(tmp_path, folder), load(tmp_path, shards)
    assert from_folder.fingerprint == from_shard.fingerprint
    assert from_folder.stems == from_shard.stems
    assert from_folder.train.tolist() == from_shard.train.tolist()
    assert from_folder.held_out.tolist() == from_shard.held_out.tolist()
    np.testing.assert_array_equal(from_folder.pixels, from_shard.pixels)
    assert len(from_folder.skipped) == len(from_shard.skipped) == 1


def test_the_fingerprint_is_of_names_and_pixels(tmp_path):
    def fingerprint(folder, seeds):
        for name, seed in seeds.items():
            save_noise(tmp_path / folder / f"{name}.png", seed)
        return load(tmp_path, tmp_path / folder).fingerprint

    first = fingerprint("first", {"a": 0, "b": 1})
    assert fingerprint("same", {"a": 0, "b": 1}) == first
    others = [
        fingerprint("pixels", {"a": 0, "b": 2}),
        fingerprint("names", {"a": 0, "c": 1}),
        fingerprint("exchanged", {"a": 1, "b": 0}),
        fingerprint("more", {"a": 0, "b": 1, "c": 2}),
    ]
    assert len({first, *others}) == 5


def test_unicode_names_are_names(tmp_path):
    folder = tmp_path / "faces"
    names = ["Zoë", "顔", "with space", "a.b.c", "100%", "quote'd"]
    for i, name in enumerate(names):
        save_noise(folder / f"{name}.png", i)
    assert sorted(load(tmp_path, folder).stems) == sorted(names)


def test_names_that_are_no_unicode_are_names_too(tmp_path):
    folder = tmp_path / "faces"
    for i in range(2):
        save_noise(folder / f"{i}.png", i)
    try:
        (folder / "0.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    expected = sorted(["1", os.fsdecode(b"caf\xe9")])
    assert sorted(load(tmp_path, folder).stems) == expected
    assert sorted(load(tmp_path, folder).stems) == expected  # and from the cache


def test_unreadable_files_are_skipped_and_listed(tmp_path):
    folder = tmp_path / "faces"
    for i in range(12):
        save_noise(folder / f"{i:03}.png", i)
    (folder / "005.png").write_bytes((folder / "005.png").read_bytes()[:200])
    (folder / "zero.jpg").touch()
    faces = load(tmp_path, folder)
    rows = {*faces.train.tolist(), *faces.held_out.tolist()}
    assert len(rows) == 11
    assert {"005", "zero"}.isdisjoint(faces.stems[row] for row in rows)
    assert [reason.partition(":")[0] for reason in faces.skipped] == [
        str(folder / "005.png"),
        str(folder / "zero.jpg"),
    ]
    assert load(tmp_path, folder).skipped == faces.skipped


def test_hostile_pictures_are_counted_and_named_and_cost_no_other_one(tmp_path):
    folder = tmp_path / "faces"
    sound = ["顔", "وجه", "\u202egnp", "a\nb", "-rf", " ", "mislabelled", "moving"]
    for i, name in enumerate(sound[:-2]):
        save_noise(folder / f"{name}.png", i)
    save_noise(folder / "mislabelled.jpg", 20)
    (folder / "mislabelled.jpg").rename(folder / "mislabelled.webp")
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    for name, content in DAMAGED.items():
        (folder / name).write_bytes(content)
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "outward.png").symlink_to("/etc/hostname")
    (folder / "above").symlink_to(folder)
    faces = load(tmp_path, folder)
    kept = [faces.stems[row] for row in (*faces.train, *faces.held_out)]
    assert sorted(kept) == sorted(sound)
    bad = {*DAMAGED, "itself.png", "outward.png"}
    assert {Path(reason.split(": ")[0]).name for reason in faces.skipped} == bad
    assert len(faces.skipped) == len(bad)


def test_with_no_readable_picture_the_first_reason_is_given(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("text")
    for _ in range(2):
        with pytest.raises(DataError, match=r"none of the 2 pictures can be read.*a\.png: "):
            load(tmp_path, tmp_path)


def test_one_face_is_not_enough(tmp_path):
    save_noise(tmp_path / "a.png", 0)
    (tmp_path / "b.png").write_text("text")
    for _ in range(2):
        with pytest.raises(DataError, match="only one face"):
            load(tmp_path, tmp_path)


@pytest.mark.parametrize("content", ["folder", "shard"])
def test_a_source_without_pictures_says_so(tmp_path, content):
    source = tmp_path / "source"
    source.mkdir()
    (source / "notes.txt").touch()
    if content == "shard":
        pack(tmp_path / "source.tar", source)
        source = tmp_path / "source.tar"
    with pytest.raises(DataError, match="no pictures in there"):
        load(tmp_path, source)


# ---------------------------------------------------------------- the split


def test_about_one_in_twelve_names_is_held_out_and_always_the_same():
    names = [f"{i:06}" for i in range(12_000)]
    held_out = [name for name in names if dataset.is_held_out(name)]
    # a binomial's five standard deviations around 1,000
    assert abs(len(held_out) - 1000) < 5 * (12_000 * (1 / 12) * (11 / 12)) ** 0.5
    assert held_out == [name for name in names if dataset.is_held_out(name)]


def split(tmp_path, folder):
    faces = load(tmp_path, folder)
    return [{faces.stems[row] for row in rows} for rows in (faces.train, faces.held_out)]


def test_the_split_is_by_name_and_survives_more_faces_and_another_format(tmp_path):
    for i in range(40):
        save_noise(tmp_path / "few" / f"{i:03}.png", i)
        save_noise(tmp_path / "many" / "deep" / f"{i:03}.bmp", i + 1000)
        save_noise(tmp_path / "many" / f"{i + 500:03}.png", i)
    train, held_out = split(tmp_path, tmp_path / "few")
    assert held_out == {f"{i:03}" for i in range(40) if dataset.is_held_out(f"{i:03}")}
    assert train == {f"{i:03}" for i in range(40)} - held_out
    more_train, more_held_out = split(tmp_path, tmp_path / "many")
    assert train <= more_train
    assert held_out <= more_held_out


def by_the_split(wanted, count):
    return [n for n in (f"{i:03}" for i in range(200)) if dataset.is_held_out(n) == wanted][:count]


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_one_face_is_held_out_where_chance_would_leave_a_side_empty(tmp_path, wanted, count):
    for i, name in enumerate(by_the_split(wanted, count)):
        save_noise(tmp_path / "faces" / f"{name}.png", i)
    train, held_out = split(tmp_path, tmp_path / "faces")
    assert len(held_out) == 1
    assert len(train) == count - 1


# ---------------------------------------------------------------- the cache


class Calls(list):
    """Records the number done in each progress call."""

    def __call__(self, _task, done, total):
        self.append((done, total))


def test_a_second_load_converts_nothing(tmp_path, faces_folder):
    first, second = Calls(), Calls()
    faces = load(tmp_path, faces_folder, progress=first)
    again = load(tmp_path, faces_folder, progress=second)
    assert first[-1] == (48, 48)
    assert second == []
    np.testing.assert_array_equal(again.pixels, faces.pixels)
    assert (again.stems, again.fingerprint) == (faces.stems, faces.fingerprint)
    assert again.train.tolist() == faces.train.tolist()


def test_a_changed_file_is_converted_anew(tmp_path, faces_folder):
    before = load(tmp_path, faces_folder)
    path = faces_folder / "007.png"
    status = path.stat()
    save_noise(path, 7, size=48)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    calls = Calls()
    after = load(tmp_path, faces_folder, progress=calls)
    assert calls[-1] == (48, 48)
    assert after.fingerprint != before.fingerprint
    row = after.stems.index("007")
    assert (after.pixels[row] != before.pixels[row]).any()
    assert len(dataset.list_cache(tmp_path / "cache")) == 2


def test_a_changed_time_alone_makes_another_key(tmp_path, faces_folder):
    files = find_files([faces_folder])
    before, _ = dataset.converted(files, 32, tmp_path)
    assert dataset.converted(files, 32, tmp_path)[0] == before
    assert dataset.converted(files, 64, tmp_path)[0] != before
    assert dataset.converted(files[1:], 32, tmp_path)[0] != before
    os.utime(files[0], ns=(1, files[0].stat().st_mtime_ns + 1000))
    assert dataset.converted(files, 32, tmp_path)[0] != before


class Stopped(Exception):
    pass


def test_an_interrupted_conversion_goes_on_with_what_is_left(tmp_path):
    folder = tmp_path / "faces"
    for i in range(150):
        save_noise(folder / f"{i:03}.png", i)
    (folder / "100.png").write_text("no picture")
    whole = dataset.load_faces([folder], 32, cache=tmp_path / "other cache")
    stopped = []

    def stop(_task, done, _total):
        stopped.append(done)
        raise Stopped

    with pytest.raises(Stopped):
        load(tmp_path, folder, progress=stop)
    [entry] = dataset.list_cache(tmp_path / "cache")
    assert entry.sources == [str(folder)]
    assert (entry.size, entry.num_faces, entry.complete) == (32, 0, False)
    assert 0 < stopped[0] < 150

    # converted pictures are not read again: these no longer hold anything but their size and time
    for i in range(stopped[0]):
        path = folder / f"{i:03}.png"
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    calls = Calls()
    resumed = load(tmp_path, folder, progress=calls)
    assert calls[0][0] > stopped[0]
    assert calls[-1] == (150, 150)
    np.testing.assert_array_equal(resumed.pixels, whole.pixels)
    assert (resumed.stems, resumed.fingerprint) == (whole.stems, whole.fingerprint)
    assert (resumed.train.tolist(), resumed.skipped) == (whole.train.tolist(), whole.skipped)


def test_pixels_that_never_reached_the_disk_are_converted_again(tmp_path, faces_folder):
    whole = load(tmp_path, faces_folder)
    folder, _ = dataset.converted(find_files([faces_folder]), 32, tmp_path / "cache")
    (folder / "index.json").unlink()
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", mode="r+")
    pixels[7] = 0
    pixels.flush()
    again = load(tmp_path, faces_folder)
    assert again.pixels[7].any()
    assert again.fingerprint == whole.fingerprint


def test_arrays_that_were_cut_off_while_being_made_are_made_again(tmp_path, faces_folder):
    whole = dataset.load_faces([faces_folder], 32, cache=tmp_path / "other cache")
    folder, _ = dataset.converted(find_files([faces_folder]), 32, tmp_path / "cache")
    folder.mkdir(parents=True)
    (folder / "pixels.npy").write_bytes(b"\x93NUMPY")
    (folder / "rows.npy").touch()
    np.testing.assert_array_equal(load(tmp_path, faces_folder).pixels, whole.pixels)


def test_sources_are_kept_by_their_whole_path(tmp_path, faces_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load(tmp_path, faces_folder.name)
    [entry] = dataset.list_cache(tmp_path / "cache")
    assert entry.sources == [str(faces_folder)]


def test_list_cache_tells_what_is_there(tmp_path, faces_folder):
    cache = tmp_path / "cache"
    assert dataset.list_cache(cache) == []
    (faces_folder / "broken.png").write_text("no picture")
    load(tmp_path, faces_folder, size=32)
    load(tmp_path, faces_folder, size=64)
    first, second = dataset.list_cache(cache)
    assert (first.size, second.size) == (32, 64)
    for entry in (first, second):
        assert entry.sources == [str(faces_folder)]
        assert entry.num_faces == 48
        assert entry.complete
        assert entry.num_bytes >= 48 * 3 * entry.size**2
        assert entry.folder == dataset.faces_cache(cache) / entry.key
        assert entry.num_bytes == sum(f.stat().st_size for f in entry.folder.iterdir())
    assert first.created < second.created


# ---------------------------------------------------------------- shards


def test_members_that_point_elsewhere_are_neither_written_nor_followed(tmp_path):
    secret = tmp_path / "secret.png"
    save_noise(secret, 99)
    box = tmp_path / "box"
    box.mkdir()
    with tarfile.open(box / "shard.tar", "w") as tar:
        for i, name in enumerate(["../up.png", "/absolute.png", "a/../../../far.png", "plain.png"]):
            add_member(tar, name, png_bytes(i))
        add_member(tar, "symbolic.png", type=tarfile.SYMTYPE, linkname=str(secret))
        add_member(tar, "hard.png", type=tarfile.LNKTYPE, linkname="plain.png")
        add_member(tar, "pipe.png", type=tarfile.FIFOTYPE)
        add_member(tar, "folder.png", type=tarfile.DIRTYPE)
        add_member(tar, "._plain.png", b"what a Mac leaves behind")
        add_member(tar, "labels.csv", b"name,Male\n")
    faces = load(tmp_path, box)
    kept = [faces.stems[row] for row in (*faces.train, *faces.held_out)]
    assert sorted(kept) == ["absolute", "far", "plain", "up"]
    assert [reason.partition(":")[2] for reason in faces.skipped] == [
        f"{name}.png: a link or device, which is not followed"
        for name in ("hard", "pipe", "symbolic")
    ]
    outside = {f.name for f in tmp_path.rglob("*") if tmp_path / "cache" not in f.parents}
    assert outside == {"secret.png", "box", "shard.tar", "cache"}
    assert not Path("/absolute.png").exists()


def test_a_damaged_member_is_skipped_by_its_name_in_the_shard(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for i in range(3):
            add_member(tar, f"deep/{i}.png", png_bytes(i))
        add_member(tar, "deep/bad.png", png_bytes(9)[:100])
    faces = load(tmp_path, tmp_path / "s.tar")
    assert len(faces.train) + len(faces.held_out) == 3
    assert len(faces.skipped) == 1
    assert faces.skipped[0].startswith(f"{tmp_path / 's.tar'}:deep/bad.png: ")


@pytest.mark.parametrize("left", [1, 300, 511])
def test_a_shard_that_is_cut_off_in_a_header_is_refused(tmp_path, left):
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as tar:
        for i in range(3):
            add_member(tar, f"{i}.png", png_bytes(i))
            end = tar.offset  # offset of the next header, or of the end of the archive
    content = whole.read_bytes()
    first = load(tmp_path, whole)
    assert len(first.train) + len(first.held_out) == 3
    with tarfile.open(whole) as tar:
        last = tar.getmembers()[-1].offset
    (tmp_path / "cut.tar").write_bytes(content[: last + left])
    with pytest.raises(DataError, match="cut off in the middle"):
        load(tmp_path, tmp_path / "cut.tar")
    # an archive that lacks only its end marker can be read
    (tmp_path / "endless.tar").write_bytes(content[:end])
    assert len(load(tmp_path, tmp_path / "endless.tar").skipped) == 0


def declared(name, size, kind=tarfile.REGTYPE):
    """A tar header without content that declares a file of this size."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(512)


HOSTILE = {
    "a file larger than any disk": declared("a.png", 2**62),
    "a file larger than the shard": declared("a.png", 2**40),
    "a name larger than memory": declared("a.png", 2**40, tarfile.GNUTYPE_LONGNAME),
    "notes larger than memory": declared("a.png", 2**62, tarfile.XHDTYPE),
    "names of names of names": declared("a", 5, tarfile.GNUTYPE_LONGNAME) * 3000,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_shard_that_claims_what_cannot_be_is_one_line(tmp_path, content):
    path = tmp_path / "shard.tar"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(tmp_path, path)
    assert str(caught.value).startswith(f"{path}: cannot be read as an uncompressed tar shard (")


def test_a_sparse_member_takes_no_more_memory_than_the_shard_holds(tmp_path):
    """A member that declares 1 TB but stores nothing."""
    sparse = bytearray(declared("sparse.png", 0, tarfile.GNUTYPE_SPARSE)[:512])
    sparse[483:495] = tarfile.itn(2**40, 12, tarfile.GNU_FORMAT)
    sparse[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(sparse))[0]
    with tarfile.open(tmp_path / "plain.tar", "w") as tar:
        for i in range(2):
            add_member(tar, f"{i}.png", png_bytes(i))
    (tmp_path / "s.tar").write_bytes(bytes(sparse) + (tmp_path / "plain.tar").read_bytes())
    faces = load(tmp_path, tmp_path / "s.tar")
    assert len(faces.train) + len(faces.held_out) == 2
    assert [":sparse.png: " in reason for reason in faces.skipped] == [True]


@pytest.mark.parametrize("content", ["gzip", "text", "truncated"])
def test_what_is_no_tar_is_named(tmp_path, content):
    path = tmp_path / "shard.tar"
    if content == "text":
        path.write_text("no shard")
    else:
        with tarfile.open(path, "w:gz" if content == "gzip" else "w") as tar:
            add_member(tar, "a.png", png_bytes(0))
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"shard\.tar: cannot be read as an uncompressed tar"):
        load(tmp_path, path)


def test_faces_are_found_again_by_their_fingerprint_alone(tmp_path, faces_folder):
    faces = dataset.load_faces([faces_folder], 32, cache=tmp_path / "cache")
    found = dataset.cached_faces(faces.fingerprint, 32, tmp_path / "cache")
    assert np.array_equal(found.pixels, faces.pixels)
    assert np.array_equal(found.held_out, faces.held_out)
    assert dataset.cached_faces(faces.fingerprint, 64, tmp_path / "cache") is None
    assert dataset.cached_faces("another", 32, tmp_path / "cache") is None
    assert dataset.cached_faces(faces.fingerprint, 32, tmp_path / "nowhere") is None


def test_a_conversion_that_was_broken_off_stands_in_no_ones_way(tmp_path, faces_folder):
    faces = dataset.load_faces([faces_folder], 32, cache=tmp_path / "cache")
    (entry,) = dataset.list_cache(tmp_path / "cache")
    (entry.folder / INDEX).unlink()
    assert [e.complete for e in dataset.list_cache(tmp_path / "cache")] == [False]
    assert dataset.cached_faces(faces.fingerprint, 32, tmp_path / "cache") is None
