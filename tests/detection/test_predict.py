"""`botnet predict` with a detector: one id an image, and broken files that cost nothing but themselves."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from botnet.detection.predict import _image_ids
from botnet.errors import DataError


def truth_of(**ids):
    """An instances file that knows nothing but its images."""
    return SimpleNamespace(images=[{"id": image_id, "file_name": name} for name, image_id in ids.items()])


@pytest.mark.parametrize(
    ("paths", "known", "ids"),
    [
        (["c/b.jpg", "c/a.jpg"], None, [1, 2]),
        (["c/000139.jpg", "c/000007.jpg"], None, [139, 7]),
        (["c/000139.jpg", "c/a.jpg"], None, [1, 2]),
        (["c/1.jpg", "c/01.jpg"], None, [1, 2]),
        (["c/a.jpg", "c/b.jpg"], {"a.jpg": 2}, [2, 3]),
        (["c/b.jpg"], {"a.jpg": 1}, [2]),  # not that of a true image which is not asked for
        (["c/7.jpg", "c/a.jpg", "c/5.jpg"], {"a.jpg": 7}, [8, 7, 9]),
        (["c/8.jpg", "c/a.jpg", "c/9.jpg"], {"a.jpg": 7}, [8, 7, 9]),
        (["c/y/1.jpg"], {"x/1.jpg": 3, "y/1.jpg": 5}, [5]),
        (["c/x/1.jpg"], {"x/1.jpg": 3, "y/1.jpg": 5}, [3]),
        (["c/z/1.jpg"], {"x/1.jpg": 3, "y/1.jpg": 5}, [1]),
        (["c/x/1.jpg"], {"1.jpg": 3, "x/1.jpg": 5}, [5]),
        (["c/y/../x/1.jpg"], {"x/1.jpg": 3, "y/1.jpg": 5}, [3]),
    ],
)
def test_ids_are_the_truths_or_nobody_elses(paths, known, ids):
    found = _image_ids([Path(path) for path in paths], truth_of(**known) if known else None)
    assert [image_id for image_id, _ in found] == ids
    true_ids = set((known or {}).values())
    assert [is_known for _, is_known in found] == [image_id in true_ids for image_id in ids]


def test_the_folder_that_one_stands_in_is_part_of_the_path(tmp_path, monkeypatch):
    (tmp_path / "y").mkdir()
    monkeypatch.chdir(tmp_path / "y")
    assert _image_ids([Path("1.jpg")], truth_of(**{"x/1.jpg": 3, "y/1.jpg": 5})) == [(5, True)]


def test_a_truth_that_has_a_file_twice_is_refused():
    twice = truth_of(**{"a.jpg": 1, "./a.jpg": 2})
    with pytest.raises(DataError, match=r"c/a\.jpg: the truth has two images of this file name, 1 and 2"):
        _image_ids([Path("c/a.jpg")], twice)
