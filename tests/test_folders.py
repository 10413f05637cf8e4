"""Folders that are filled completely or not at all."""

import os
from pathlib import Path

import pytest

from botnet.errors import ConfigError
from botnet.folders import new_folder


def fill(directory: Path) -> None:
    with new_folder(directory) as filled:
        (filled / "part").mkdir()
        (filled / "part" / "a").touch()
        (filled / "b").touch()


@pytest.mark.parametrize("kind", ["new", "empty", "link", "dangling link", "working directory"])
def test_a_folder_is_filled(kind, tmp_path, monkeypatch):
    target = directory = tmp_path / "deep" / "set"
    if kind not in ("new", "dangling link"):
        target.mkdir(parents=True)
    if "link" in kind:
        directory = tmp_path / "link"
        directory.symlink_to(target)
    if kind == "working directory":
        monkeypatch.chdir(target)
        directory = Path()
    fill(directory)
    assert sorted(os.listdir(directory)) == sorted(os.listdir(target)) == ["b", "part"]
    assert (target / "part" / "a").is_file()
    assert os.listdir(target.parent) == ["set"]


@pytest.mark.parametrize("exists", [False, True])
def test_an_error_leaves_nothing_behind(exists, tmp_path):
    directory = tmp_path / "set"
    if exists:
        directory.mkdir()

    def fill_and_fail() -> None:
        with new_folder(directory) as filled:
            (filled / "a").touch()
            (filled / "a").mkdir()

    with pytest.raises(FileExistsError):
        fill_and_fail()
    assert list(tmp_path.rglob("*")) == [directory] * exists


def test_error_names_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file: cannot make this folder"):
        fill(tmp_path / "file" / "set")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that even root cannot write")
def test_error_names_a_folder_that_cannot_be_written():
    with pytest.raises(ConfigError, match="/proc: cannot write into this folder"):
        fill(Path("/proc/set"))
