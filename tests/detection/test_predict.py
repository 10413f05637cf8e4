"""`botnet predict` with a detector: a unique id for each image, and broken files that are left out."""

import json
from pathlib import Path

import pytest
from PIL import Image

from botnet.cli import main
from botnet.detection.checkpoint import load_detector
from botnet.detection.detector import TorchDetector
from botnet.detection.image_files import image_ids
from botnet.detection.predict import predict
from botnet.detection.records import ImageRecord
from botnet.errors import DataError
from botnet.images import image_files
from tests.support.classification import picture
from tests.support.detection import write_detector

pytestmark = pytest.mark.long


def records_of(**ids):
    return [ImageRecord(image_id, name, 1, 1) for name, image_id in ids.items()]


@pytest.mark.parametrize(
    ("paths", "known", "ids"),
    [
        (["c/b.jpg", "c/a.jpg"], None, [1, 2]),
        (["c/000139.jpg", "c/000007.jpg"], None, [139, 7]),
        (["c/000139.jpg", "c/a.jpg"], None, [1, 2]),
        (["c/1.jpg", "c/01.jpg"], None, [1, 2]),
        (["c/a.jpg", "c/b.jpg"], {"a.jpg": 2}, [2, 3]),
        (["c/b.jpg"], {"a.jpg": 1}, [2]),  # not the id of another record
        (["c/7.jpg", "c/a.jpg", "c/5.jpg"], {"a.jpg": 7}, [8, 7, 9]),
        (["c/8.jpg", "c/a.jpg", "c/9.jpg"], {"a.jpg": 7}, [8, 7, 9]),
        (["c/y/1.jpg"], {"x/1.jpg": 3, "y/1.jpg": 5}, [5]),
        (["c/x/1.jpg"], {"x/1.jpg": 3, "y/1.jpg": 5}, [3]),
        (["c/z/1.jpg"], {"x/1.jpg": 3, "y/1.jpg": 5}, [1]),
        (["c/x/1.jpg"], {"1.jpg": 3, "x/1.jpg": 5}, [5]),
        (["c/y/../x/1.jpg"], {"x/1.jpg": 3, "y/1.jpg": 5}, [3]),
    ],
)
def test_images_have_the_id_of_their_record_or_an_unused_one(paths, known, ids):
    found = image_ids([Path(path) for path in paths], records_of(**(known or {})))
    assert [image_id for image_id, _ in found] == ids
    recorded = set((known or {}).values())
    assert [known for _, known in found] == [image_id in recorded for image_id in ids]


def test_the_working_directory_is_part_of_the_path(tmp_path, monkeypatch):
    (tmp_path / "y").mkdir()
    monkeypatch.chdir(tmp_path / "y")
    assert image_ids([Path("1.jpg")], records_of(**{"x/1.jpg": 3, "y/1.jpg": 5})) == [(5, True)]


def test_two_records_of_one_file_are_refused():
    twice = records_of(**{"a.jpg": 1, "./a.jpg": 2})
    with pytest.raises(DataError, match=r"c/a\.jpg: the truth has two images of this file name, 1 and 2"):
        image_ids([Path("c/a.jpg")], twice)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("detector") / "last.ckpt")


@pytest.fixture
def folder(tmp_path):
    """Two images, a truncated one between them, and files that are not images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in (("a.png", (60, 40)), ("b.jpg", (40, 40)), ("c.gif", (200, 100))):
        picture(1, size).save(folder / name)
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:-300])
    for name in ("notes.pdf", "film.mpg", "drawing.eps", "numbers.h5"):
        (folder / name).write_bytes(b"no image")
    (folder / "folder.png").mkdir()
    return folder


def test_frames_in_folders_of_every_mode_are_drawn_into_the_same_folders(detector, tmp_path):
    source, output = tmp_path / "videos", tmp_path / "found"
    modes = ("L", "I;16", "P", "RGBA", "CMYK")
    for number, mode in enumerate(modes):
        path = source / f"video{number}" / "frames" / "000001.tif"
        path.parent.mkdir(parents=True)
        Image.new(mode, (40, 30)).save(path)
    call = ["predict", str(detector), str(source), "--output", str(output), "--score", "0"]
    assert main(call) == 2
    assert not output.exists()
    assert main([*call, "--recursive"]) == 0
    names = [f"video{number}/frames/000001" for number in range(len(modes))]
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.png")) == [
        f"{name}.png" for name in names
    ]
    records = json.loads((output / "results_bbox.json").read_text())
    assert {record["file_name"] for record in records} <= {f"{name}.tif" for name in names}
    assert len({record["image_id"] for record in records}) == len({record["file_name"] for record in records})
    (source / "circle").symlink_to(source)
    with pytest.raises(DataError, match="circle is a symbolic link to a folder that holds it"):
        image_files([source], recursive=True)


def test_a_broken_image_is_left_out(detector, folder, tmp_path, capsys):
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


def test_an_image_without_the_chosen_pixel_is_left_out(detector, folder, tmp_path, capsys):
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


def test_attention_costs_no_second_pass_of_the_network(detector, folder, tmp_path, monkeypatch):
    """One pass of the backbone per image; one decoding for the picture and one for the canvas."""
    passes, opened = [], []
    network, metadata = load_detector(detector)
    network.backbone.register_forward_hook(lambda *_: passes.append(None))
    open_file = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or open_file(path))
    predict(TorchDetector(network, **metadata), [folder / "a.png"], tmp_path / "out", attention=True)
    assert (tmp_path / "out" / "attention" / "a.png").is_file()
    assert (len(passes), len(opened)) == (1, 2)


def test_with_tiles_the_attention_is_that_of_the_whole_canvas(detector, folder, tmp_path):
    call = ["predict", str(detector), str(folder / "c.gif"), "--device", "cpu", "--attention", "--output"]
    assert main([*call, str(tmp_path / "whole")]) == 0
    assert main([*call, str(tmp_path / "tiled"), "--tile", "128"]) == 0
    whole, tiled = (tmp_path / name / "attention" / "c.png" for name in ("whole", "tiled"))
    assert whole.read_bytes() == tiled.read_bytes()


def test_a_failed_prediction_leaves_no_folder(detector, folder, tmp_path, capsys):
    out = tmp_path / "out"
    call = ["predict", str(detector), "--device", "cpu", "--output", str(out), "--attention"]
    assert main([*call, str(folder / "b.jpg"), str(folder / "notes.pdf")]) == 2
    assert "none of the 2 images can be predicted" in (message := capsys.readouterr().err)
    assert "b.jpg: cannot be decoded" in message
    assert main([*call, str(folder / "a.png"), str(folder / "gone.png")]) == 2
    assert "gone.png: no such image or folder" in capsys.readouterr().err
    for name in ("a.png", "b.jpg", "c.gif"):
        (folder / name).unlink()
    assert main([*call, str(folder)]) == 2
    assert "holds no image" in capsys.readouterr().err
    assert not out.exists()


def test_coco_results_need_every_image_intact(detector, folder, tmp_path, capsys):
    """A truncated image is found before the first prediction, not hours later."""
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
def test_coco_results_refuse_options_for_pictures(option, detector, folder, capsys):
    call = ["predict", str(detector), str(folder), "--format", "coco", "--images-json", "listed.json"]
    assert main([*call, *option]) == 2
    assert f"{option[0]} is for pictures, and --format coco draws none" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--crop", "--size", "--weights", "--label-map"])
def test_refuses_options_for_classifiers(option, detector, folder, capsys):
    assert main(["predict", str(detector), str(folder), option, "1"]) == 2
    assert f"{option} is for classifiers; {detector} is a detector" in capsys.readouterr().err
