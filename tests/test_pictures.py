"""Pictures are found wherever they are stored, once each, in an order that depends on names."""

import numpy as np
import pytest
from PIL import Image

from facevae.data.pictures import find_files, list_pictures
from facevae.errors import DataError, ImageError


def save_noise(path, seed, size=24):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def names_of(files, folder):
    return sorted(str(file.relative_to(folder)) for file in files)


def test_folders_are_searched_at_any_depth_for_pictures_alone(tmp_path):
    folder = tmp_path / "faces"
    wanted = ["a.png", "B.JPG", "deep/er/c.webp", "Zoë/顔 1.jpeg", "shard.tar"]
    unwanted = ["notes.txt", "a.png.bak", ".hidden.png", ".git/d.png", "png"]
    for name in wanted + unwanted:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "folder.png").mkdir()
    assert names_of(find_files([folder]), folder) == sorted(wanted)


def test_a_file_that_is_named_outright_is_taken_whatever_its_name(tmp_path):
    path = tmp_path / "face"
    path.touch()
    assert find_files([path]) == [path]


def test_what_two_sources_name_counts_once(tmp_path):
    save_noise(tmp_path / "deep" / "a.png", 0)
    sources = [
        tmp_path,
        tmp_path / "deep",
        tmp_path / "deep" / "a.png",
        tmp_path / "deep" / ".." / "deep",
    ]
    assert len(find_files(sources)) == 1


def test_a_link_that_leads_back_is_followed_once(tmp_path):
    save_noise(tmp_path / "faces" / "a.png", 0)
    (tmp_path / "faces" / "back").symlink_to(tmp_path / "faces", target_is_directory=True)
    assert len(find_files([tmp_path / "faces"])) == 1


def test_links_that_lead_nowhere_are_named_and_counted_where_they_are_called_pictures(tmp_path):
    save_noise(tmp_path / "a.png", 0)
    (tmp_path / "gone.png").symlink_to(tmp_path / "missing.png")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "itself.png").symlink_to("itself.png")
    (tmp_path / "notes.txt").symlink_to("nowhere")
    (tmp_path / "shard.tar").symlink_to("nowhere")
    found = find_files([tmp_path])
    assert names_of(found, tmp_path) == ["a.png", "gone.png", "itself.png"]
    for picture in list_pictures(found)[1:]:
        with pytest.raises(ImageError, match=r"\.png: a link that leads nowhere$"):
            picture.open()


def test_a_link_to_a_picture_elsewhere_is_a_picture(tmp_path):
    save_noise(tmp_path / "store" / "a.png", 0)
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "b.png").symlink_to(tmp_path / "store" / "a.png")
    (tmp_path / "faces" / "more").symlink_to(tmp_path / "store")
    found = names_of(find_files([tmp_path / "faces"]), tmp_path / "faces")
    assert found == ["b.png", "more/a.png"]


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        find_files([tmp_path / "nowhere"])


def test_the_order_of_pictures_does_not_depend_on_that_of_files(tmp_path):
    files = [tmp_path / name for name in ("b/1.png", "a/2.png", "a/1.png", "c/0.jpg")]
    listed = [str(p.path.relative_to(tmp_path)) for p in list_pictures(files)]
    assert listed == ["c/0.jpg", "a/1.png", "b/1.png", "a/2.png"]
    assert list_pictures(files[::-1]) == list_pictures(files)
