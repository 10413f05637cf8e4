"""`botnet predict` with a detector: one id an image, and broken files that cost nothing but themselves."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from botnet.cli import main
from botnet.detection.predict import _image_ids
from botnet.errors import DataError
from tests.classification.test_evaluate import picture
from tests.support.detection import write_detector

pytestmark = pytest.mark.long


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


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("detector") / "last.ckpt")


@pytest.fixture
def folder(tmp_path):
    """Two images, a truncated one between them, and what is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in (("a.png", (60, 40)), ("b.jpg", (40, 40)), ("c.gif", (200, 100))):
        picture(1, size).save(folder / name)
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:-300])
    for name in ("notes.pdf", "film.mpg", "drawing.eps", "numbers.h5"):
        (folder / name).write_bytes(b"no image")
    (folder / "folder.png").mkdir()
    return folder


def test_a_broken_image_costs_only_itself(detector, folder, tmp_path, capsys):
    out = tmp_path / "out"
    call = ["predict", str(detector), str(folder), "--device", "cpu", "--output", str(out)]
    assert main(call) == 1
    printed = capsys.readouterr()
    (named,) = printed.err.splitlines()
    assert named.startswith(f"botnet: {folder / 'b.jpg'}: cannot be decoded")
    assert "2 images, 1 left out, " in printed.out
    assert sorted(path.name for path in out.glob("*.png")) == ["a.png", "c.png"]
    for task in ("bbox", "segm"):
        records = json.loads((out / f"results_{task}.json").read_text())
        assert {(record["file_name"], record["image_id"]) for record in records} == {
            ("a.png", 1),
            ("c.gif", 3),
        }
    assert main(call) == 2
    assert "not an empty folder" in capsys.readouterr().err
    (folder / "b.jpg").unlink()
    assert main([*call[:-1], str(tmp_path / "sound")]) == 0
    assert "left out" not in capsys.readouterr().out


def test_an_image_without_the_chosen_pixel_costs_only_itself(detector, folder, tmp_path, capsys):
    out = tmp_path / "out"
    call = ["predict", str(detector), str(folder), "--device", "cpu", "--output", str(out), "--attention"]
    assert main([*call, "--pixel", "100", "50"]) == 1
    err = capsys.readouterr().err
    assert "a.png has 60 x 40 pixels, none at 100 50" in err
    assert "b.jpg: cannot be decoded" in err
    assert [path.name for path in out.glob("*.png")] == ["c.png"]
    assert [path.name for path in (out / "attention").iterdir()] == ["c.png"]
    assert {record["file_name"] for record in json.loads((out / "results_bbox.json").read_text())} == {
        "c.gif"
    }


def test_a_prediction_that_wrote_nothing_leaves_no_folder(detector, folder, tmp_path, capsys):
    out = tmp_path / "out"
    call = ["predict", str(detector), "--device", "cpu", "--output", str(out), "--attention"]
    assert main([*call, str(folder / "b.jpg"), str(folder / "notes.pdf")]) == 2
    assert "no other of the 2 images can be predicted" in (message := capsys.readouterr().err)
    assert "b.jpg: cannot be decoded" in message
    assert main([*call, str(folder / "a.png"), str(folder / "gone.png")]) == 2
    assert "gone.png: no such image or folder" in capsys.readouterr().err
    for name in ("a.png", "b.jpg", "c.gif"):
        (folder / name).unlink()
    assert main([*call, str(folder)]) == 2
    assert "holds no image" in capsys.readouterr().err
    assert not out.exists()


def test_results_for_the_server_want_every_image_whole(detector, folder, tmp_path, capsys):
    """A truncated image is found before the first one is predicted, not hours later."""
    images = [
        {"id": number, "file_name": name, "height": height, "width": width}
        for number, (name, height, width) in enumerate([("a.png", 40, 60), ("b.jpg", 40, 40)], start=1)
    ]
    listed = tmp_path / "listed.json"
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    listed.write_text(json.dumps({"images": images, "categories": categories}))
    call = ["predict", str(detector), str(folder), "--device", "cpu", "--output", str(tmp_path / "out")]
    assert main([*call, "--format", "coco", "--images-json", str(listed)]) == 2
    printed = capsys.readouterr()
    assert "b.jpg: cannot be decoded" in printed.err
    assert "predicting" not in printed.out
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    assert main([*call, "--format", "coco", "--images-json", str(listed)]) == 2
    assert "2 of the 2 images" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--attention"], ["--truth", "t.json"], ["--score", "0"]])
def test_results_for_the_server_are_not_drawn(option, detector, folder, capsys):
    call = ["predict", str(detector), str(folder), "--format", "coco", "--images-json", "listed.json"]
    assert main([*call, *option]) == 2
    assert f"{option[0]} is for pictures, and --format coco draws none" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--crop", "--size", "--weights", "--label-map"])
def test_refuses_what_is_for_classifiers(option, detector, folder, capsys):
    assert main(["predict", str(detector), str(folder), option, "1"]) == 2
    assert f"{option} is for classifiers; {detector} is a detector" in capsys.readouterr().err
