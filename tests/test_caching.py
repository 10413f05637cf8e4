"""The lock of the user's cache."""

import multiprocessing

import pytest

from botnet import caching
from botnet.caching import alone
from botnet.errors import ConfigError


def try_to_hold(lock, queue):
    caching.LONGEST_WAIT = 0.1
    with alone(lock) as held:
        queue.put(held)


@pytest.mark.long
def test_one_process_at_a_time_holds_the_lock(tmp_path):
    lock, context = tmp_path / "deep" / "a.lock", multiprocessing.get_context("fork")
    queue = context.Queue()
    answers = []
    for holding in (True, False):
        other = context.Process(target=try_to_hold, args=(lock, queue))
        if holding:
            with alone(lock) as held:
                assert held
                other.start()
                other.join(60)
        else:
            other.start()
            other.join(60)
        answers.append(queue.get(timeout=60))
    assert answers == [False, True]


def test_a_folder_that_cannot_be_made_has_no_lock(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with alone(tmp_path / "file" / "a.lock") as held:
        assert not held


def test_without_a_home_folder_the_variable_is_named(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", unknown)
    with pytest.raises(ConfigError, match="no home folder; set XDG_CACHE_HOME"):
        caching.cache_folder()
