"""Finding, reading and placing files."""

import os

import pytest

from botnet.errors import DataError
from botnet.images import files_below
from botnet.layouts.files import place, read_head, relative_name
from tests.support.layouts import write_image


def test_files_are_found_however_deep_and_through_links(tmp_path):
    outside = write_image(tmp_path / "outside" / "z.PNG").parent
    home = tmp_path / "home"
    for name in ("b/c/d/e.png", "a.png", "b/.hidden.png", "b/.hidden/f.png", "b/notes.txt"):
        write_image(home / name) if name.endswith("png") else (home / name).write_text("")
    (home / "link").symlink_to(outside)
    assert [path.relative_to(home).as_posix() for path in files_below(home, (".png",))] == [
        "a.png",
        "b/c/d/e.png",
        "link/z.PNG",
    ]


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    with pytest.raises(
        DataError, match=r"b/up is a symbolic link to a folder that holds it; remove the link"
    ):
        files_below(tmp_path, (".png",))


@pytest.mark.parametrize("target", ["nowhere.png", "a.png"])
def test_a_link_to_nothing_or_itself_is_refused(tmp_path, target):
    (tmp_path / "a.png").symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=r"a\.png is a symbolic link to nothing"):
        files_below(tmp_path, (".png",))


def test_two_links_to_one_folder_are_no_circle(tmp_path):
    write_image(tmp_path / "frames" / "a.png")
    (tmp_path / "again").symlink_to(tmp_path / "frames")
    assert len(files_below(tmp_path, (".png",))) == 2


def test_a_name_in_another_encoding_is_refused(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    with pytest.raises(DataError, match=r"caf\\udce9\.png': the file's name is not UTF-8; rename it"):
        relative_name(tmp_path / name, tmp_path)
    assert relative_name(tmp_path / "café.png", tmp_path) == "café.png"


def test_an_image_is_linked_or_copied(tmp_path, monkeypatch):
    source = write_image(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(source)
    assert place(tmp_path / "link.png", tmp_path / "deep" / "b.png")
    assert (tmp_path / "deep" / "b.png").samefile(source)
    assert not (tmp_path / "deep" / "b.png").is_symlink()

    def refuse(*_):
        raise OSError("another file system")

    monkeypatch.setattr("os.link", refuse)
    assert not place(source, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes() == source.read_bytes()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"folder\.xml: cannot be read \(Is a directory\)"):
        read_head(write_image(tmp_path / "folder.xml" / "a.png").parent)


def test_a_file_that_is_there_is_not_written_to(tmp_path):
    first, second = write_image(tmp_path / "a.png"), write_image(tmp_path / "b.png", 1)
    before = first.read_bytes()
    place(first, tmp_path / "new.png")
    with pytest.raises(DataError, match=r"b\.png: new\.png is the name of another image, too"):
        place(second, tmp_path / "new.png")
    assert first.read_bytes() == before
