"""Instances files of YOLO's labels in the user's cache, made by several processes at once."""

import errno
import multiprocessing
import time

import pytest

from botnet.errors import ConfigError, DataError
from botnet.layouts import cache as module
from botnet.layouts.cache import cached_instances
from botnet.layouts.yolo import YoloSet
from tests.support.layouts import write_yolo_set


def make_and_count(file, start, queue):
    """Ask for the file at the same time as others; its content, and whether this process has written it."""
    written_here, write = [], module.write_instances
    module.write_instances = lambda *given: (written_here.append(1), time.sleep(0.5), write(*given))[-1]
    start.wait(60)
    made = cached_instances(YoloSet(file), "train")
    queue.put((made, made.read_text(), len(written_here)))


@pytest.mark.long
def test_of_processes_that_start_at_once_one_converts(tmp_path, cache):
    file = write_yolo_set(tmp_path / "set")
    context = multiprocessing.get_context("fork")
    start, queue = context.Event(), context.Queue()
    ranks = [context.Process(target=make_and_count, args=(file, start, queue)) for _ in range(2)]
    for rank in ranks:
        rank.start()
    start.set()
    answers = [queue.get(timeout=120) for _ in ranks]
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert sum(count for _, _, count in answers) == 1
    (path,) = {path for path, _, _ in answers}
    assert {content for _, content, _ in answers} == {path.read_text()}
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["train.json", "train.lock"]


def test_what_a_killed_process_left_is_removed(tmp_path, cache):
    data = YoloSet(write_yolo_set(tmp_path / "set"))
    path = cached_instances(data, "train")
    path.unlink()
    left, other = (path.parent / name for name in (".train-abc", ".val-abc"))
    for folder in (left, other):
        folder.mkdir()
        (folder / "half.json").write_text("{")
    cached_instances(data, "train")
    assert not left.exists()
    assert other.exists()


def test_broken_labels_free_the_lock_and_leave_nothing(tmp_path, cache):
    data = YoloSet(write_yolo_set(tmp_path / "set", "7 0.5 0.5 0.5 0.5\n"))
    for _ in range(2):  # the second does not wait for the first
        with pytest.raises(DataError, match="class 7"):
            cached_instances(data, "train")
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["train.lock"]


def test_a_full_disk_is_an_error_with_a_remedy(tmp_path, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_instances", full)
    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\); make room"):
        cached_instances(YoloSet(write_yolo_set(tmp_path / "set")), "train")
