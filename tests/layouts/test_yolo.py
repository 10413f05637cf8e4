"""YOLO's labels, read and refused."""

import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from botnet.errors import DataError
from botnet.layouts.samples import Object
from botnet.layouts.yolo import YoloSet, label_file
from tests.support.layouts import SIZE, write_image, write_yolo_set


def objects(root: Path, lines: str, **arguments) -> list[Object]:
    (sample,) = YoloSet(write_yolo_set(root, lines, **arguments)).samples("train", Counter())
    assert (sample.width, sample.height) == SIZE
    return sample.objects


def test_boxes(tmp_path):
    found = objects(tmp_path, "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.9 0.2 0.2\n")
    assert found == [Object(1, (15, 5, 10, 10)), Object(0, (0, 16, 8, 4))]


def test_polygons(tmp_path):
    (found,) = objects(tmp_path, "1 0.1 0.1 0.5 0.1 0.5 0.75\n")
    assert found == Object(1, (4, 2, 16, 13), [[4, 2, 20, 2, 20, 15]])


def test_images_without_labels_have_no_objects(tmp_path):
    file = write_yolo_set(tmp_path)
    write_image(tmp_path / "images" / "train" / "deep" / "er" / "empty.png")
    found = {sample.name: len(sample.objects) for sample in YoloSet(file).samples("train", Counter())}
    assert found == {"deep/er/empty.png": 0, "train.png": 1}


def test_the_size_is_that_of_the_image_as_shown(tmp_path):
    file = write_yolo_set(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 10)).save(tmp_path / "images" / "train" / "train.png", exif=exif)
    (sample,) = YoloSet(file).samples("train", Counter())
    assert (sample.height, sample.width) == (30, 10)


@pytest.mark.parametrize(
    "entry",
    ["../images/train", "[images/train]", "list.txt", "./images/train/"],
    ids=["Roboflow", "list of folders", "file of names", "dot"],
)
def test_ways_to_name_the_images(tmp_path, entry):
    file = write_yolo_set(tmp_path / "set", yaml=f"train: {entry}\nval: images/val\nnames: {{0: a, 1: b}}\n")
    (tmp_path / "set" / "list.txt").write_text("./images/train/train.png\n")
    assert [sample.file.name for sample in YoloSet(file).samples("train", Counter())] == ["train.png"]


def test_a_path_of_another_machine_is_ignored(tmp_path):
    file = write_yolo_set(tmp_path, yaml="path: /nowhere\ntrain: images/train\nnames: [a, b]\n")
    assert YoloSet(file).splits == ["train"]
    assert YoloSet(file).images("train")


def test_valid_is_val_and_test_is_not(tmp_path):
    file = write_yolo_set(tmp_path, yaml="train: images/train\nvalid: images/val\nnames: [a, b]\n")
    assert YoloSet(file).splits == ["train", "val"]
    file.write_text("train: images/train\ntest: images/val\nnames: [a, b]\n")
    assert YoloSet(file).splits == ["train", "test"]


def test_the_last_folder_called_images_counts():
    assert label_file(Path("/images/set/images/a/b.c.jpg")) == Path("/images/set/labels/a/b.c.txt")
    assert label_file(Path("set/a.jpg")) == Path("set/a.txt")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "0 0.5 0.5 0.2 0.2\n2 0.5 0.5 0.2 0.2",
            r"train\.txt, line 2: class 2; .*data\.yaml names 2 classes, 0 to 1",
        ),
        ("-1 0.5 0.5 0.2 0.2", "line 1: class -1;"),
        ("0.5 0.5 0.5 0.2 0.2", r"line 1: class 0\.5;"),
        ("\n0 0.5 1.5 0.2 0.2", r"line 2: the coordinate 1\.5 lies outside 0 to 1"),
        ("0 0.5 0.5 0.2 nan", "line 1: the coordinate nan"),
        ("0 0.5 0.5 0.2", "line 1: 3 coordinates; a box has 4"),
        ("0 0.5 0.5 0.2 0.2 0.9", "line 1: 5 coordinates; a box has 4"),
        ("cat 0.5 0.5 0.2 0.2", "line 1: 'cat 0.5 0.5 0.2 0.2' is not a class"),
        (
            "0 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.5 0.1 0.5 0.75",
            r"line 2: a polygon, but .*train\.txt, line 1 has a box; .* either boxes or polygons",
        ),
    ],
)
def test_a_broken_line_is_named(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        objects(tmp_path, lines)


def test_boxes_in_one_split_and_polygons_in_the_other_are_refused(tmp_path):
    file = write_yolo_set(tmp_path)
    (tmp_path / "labels" / "val" / "val.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.75\n")
    data = YoloSet(file)
    list(data.samples("train", Counter()))
    with pytest.raises(DataError, match=r"val\.txt, line 1: a polygon, but .*train\.txt, line 1 has a box"):
        list(data.samples("val", Counter()))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/train\n", r"data\.yaml: names is None"),
        ("train: images/train\nnames: {0: a, 2: b}", "names is {0: 'a', 2: 'b'}"),
        ("train: images/train\nnames: [a]\nnc: 3", "nc is 3, but there are 1 names"),
        ("train: images/train\nnames: [a]\nkpt_shape: [17, 3]", "labels of keypoints"),
        ("names: [a\n", r"data\.yaml: is not YAML"),
        ("[]", "not the table of a data set"),
    ],
)
def test_a_broken_description_is_refused(tmp_path, yaml, message):
    with pytest.raises(DataError, match=message):
        YoloSet(write_yolo_set(tmp_path, yaml=yaml))


def test_a_split_without_images_or_labels_is_refused(tmp_path):
    file = write_yolo_set(tmp_path)
    (tmp_path / "labels" / "train" / "train.txt").unlink()
    with pytest.raises(
        DataError, match=r"none of the 1 images has labels, not even .*labels/train/train\.txt"
    ):
        YoloSet(file).images("train")
    (tmp_path / "images" / "train" / "train.png").unlink()
    with pytest.raises(DataError, match=r"train: no images in .*images/train"):
        YoloSet(file).images("train")
    (tmp_path / "images" / "train").rmdir()
    with pytest.raises(DataError, match=r"train: .*images/train: no such folder or list"):
        YoloSet(file).images("train")


def test_labels_in_another_encoding_are_refused(tmp_path):
    file = write_yolo_set(tmp_path)
    (tmp_path / "labels" / "train" / "train.txt").write_bytes(b"0 0.5 0.5 0.2 0.2\n\xe9")
    with pytest.raises(DataError, match=re.escape("train.txt, line 2: is not UTF-8")):
        list(YoloSet(file).samples("train", Counter()))
    file.write_bytes("names: [caf\xe9]".encode("latin-1"))
    with pytest.raises(DataError, match=re.escape("data.yaml, line 1: is not UTF-8")):
        YoloSet(file)


def test_names_are_taken_as_they_are_written(tmp_path):
    file = write_yolo_set(tmp_path, yaml="train: images/train\nval: images/val\nnames: [no, 010]\n")
    assert YoloSet(file).names == ["no", "010"]


def test_an_image_without_a_label_file_is_counted(tmp_path):
    data, losses = YoloSet(write_yolo_set(tmp_path)), Counter()
    write_image(tmp_path / "images" / "train" / "empty.png")
    assert len(list(data.samples("train", losses))) == 2
    assert +losses == {"images without a label file, kept without objects": 1}


def test_two_keys_of_one_split_are_refused(tmp_path):
    file = write_yolo_set(tmp_path, yaml="val: images/train\nvalid: images/val\nnames: [a]\n")
    with pytest.raises(DataError, match="has val and valid, which mean the same; remove one"):
        YoloSet(file).images("val")


def test_folders_above_the_description(tmp_path):
    write_yolo_set(tmp_path / "set")
    (tmp_path / "set" / "deep").mkdir()
    file = tmp_path / "set" / "deep" / "data.yaml"
    file.write_text("train: [../images/train, ../images/val]\nval: ../images/val\nnames: [a]\n")
    data = YoloSet(file)
    assert data.folder("train") == tmp_path / "set" / "images"
    assert [sample.name for sample in data.samples("train", Counter())] == ["train/train.png", "val/val.png"]
