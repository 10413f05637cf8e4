"""Which layout a folder has."""

import json
import os
import shutil

import pytest

from botnet.errors import DataError
from botnet.layouts.find import (
    COCO,
    LABELME,
    PLAIN,
    ROBOFLOW,
    TRAINABLE,
    VOC,
    YOLO,
    CocoFiles,
    find_layout,
    find_split,
)
from tests.support.layouts import shape, voc_object, write_coco, write_labelme, write_voc, write_yolo_set


def coco(root):
    for split in ("train", "val"):
        write_coco(root / "annotations" / f"instances_{split}2017.json", root / f"{split}2017")
    (root / "annotations" / "captions_train2017.json").write_text("{}")


def roboflow(root):
    for split in ("train", "valid", "test"):
        write_coco(root / split / "_annotations.coco.json", root / split)


def plain(root):
    for split in ("train", "val"):
        write_coco(root / f"{split}.json", root / split)


def plain_shared(root):
    for split in ("train", "val"):
        write_coco(root / f"instances_{split}.json", root / "images")


LAYOUTS = {
    "COCO": (coco, COCO, "annotations/instances_{0}2017.json", "{0}2017", "val"),
    "Roboflow": (roboflow, ROBOFLOW, "{0}/_annotations.coco.json", "{0}", "valid"),
    "plain": (plain, PLAIN, "{0}.json", "{0}", "val"),
    "one folder of images": (plain_shared, PLAIN, "instances_{0}.json", "images", "val"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_in_cocos_format(tmp_path, name):
    make, kind, instances, images, val = LAYOUTS[name]
    make(tmp_path)
    layout = find_layout(tmp_path)
    assert layout.kind == kind
    for split, folder in (("train", "train"), ("val", val)):
        expected = tmp_path / instances.format(folder), tmp_path / images.format(folder)
        assert find_split(layout, split) == CocoFiles(*expected)


def test_the_other_layouts(tmp_path):
    write_yolo_set(tmp_path / "yolo")
    write_voc(tmp_path / "voc" / "Annotations" / "a.xml", voc_object())
    (tmp_path / "labelme").mkdir()
    write_labelme(tmp_path / "labelme" / "a.json", shape("rectangle", [[1, 1], [3, 3]]))
    assert find_layout(tmp_path / "yolo").kind == YOLO
    assert find_layout(tmp_path / "yolo" / "data.yaml").kind == YOLO
    assert find_layout(tmp_path / "voc").kind == VOC
    assert find_layout(tmp_path / "labelme").kind == LABELME


def test_a_set_that_is_not_split(tmp_path):
    write_coco(tmp_path / "instances.json", tmp_path / "images")
    assert list(find_layout(tmp_path).coco) == ["all"]
    plain(tmp_path)  # as botnet split makes it
    assert list(find_layout(tmp_path).coco) == ["train", "val"]


def test_what_was_looked_for_is_the_error(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(DataError) as error:
        find_layout(tmp_path, TRAINABLE)
    for part in (
        "none of the known layouts",
        "instances_train2017.json",
        "_annotations.coco.json",
        "data.yaml",
    ):
        assert part in str(error.value)
    assert "convert" not in str(error.value)
    with pytest.raises(DataError, match="no such folder"):
        find_layout(tmp_path / "gone")


def test_a_layout_that_must_be_converted_is_named(tmp_path):
    write_voc(tmp_path / "a.xml", voc_object())
    with pytest.raises(DataError, match=r"Pascal VOC's layout: botnet convert .* OUT"):
        find_layout(tmp_path, TRAINABLE)


def test_two_layouts_at_once_are_refused(tmp_path):
    coco(tmp_path)
    write_yolo_set(tmp_path)
    with pytest.raises(DataError, match=r"2 layouts at once: COCO's own \(.*\) and YOLO's \(data\.yaml\)"):
        find_layout(tmp_path)


@pytest.mark.parametrize("second", ["annotations/instances_train2014.json", "valid.json", "coco.yaml"])
def test_two_of_one_kind_are_refused(tmp_path, second):
    if second == "coco.yaml":
        shutil.copy(write_yolo_set(tmp_path), tmp_path / second)
    elif second == "valid.json":
        plain(tmp_path)
        write_coco(tmp_path / second, tmp_path / "valid")
    else:
        coco(tmp_path)
        write_coco(tmp_path / second, tmp_path / "train2014")
    with pytest.raises(DataError, match=f"has two .*{second}"):
        find_layout(tmp_path)


def test_test_is_never_read_as_valid(tmp_path, cache):
    roboflow(tmp_path / "coco")
    shutil.rmtree(tmp_path / "coco" / "valid")
    write_yolo_set(tmp_path / "yolo", yaml="train: images/train\ntest: images/val\nnames: [a, b]\n")
    for name in ("coco", "yolo"):
        layout = find_layout(tmp_path / name)
        with pytest.raises(
            DataError, match="without the split val or valid; it has train, test, which is not used"
        ):
            find_split(layout, "val")


def test_a_missing_folder_of_images_is_an_error(tmp_path):
    plain(tmp_path)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(DataError, match=r"val\.json: no folder of its images; looked for .*val, .*images"):
        find_layout(tmp_path)


def test_yolo_is_converted_into_the_cache_once_for_each_state(tmp_path, cache, log):
    root = tmp_path / "set"
    write_yolo_set(root)

    def found():
        log.clear()
        return find_split(find_layout(root), "train")

    first = found()
    assert first.images == root / "images" / "train"
    assert first.instances.is_relative_to(cache)
    assert f"1 images and 1 objects are now in the instances file {first.instances}" in log.text
    assert "without a label file" not in log.text
    (annotation,) = json.loads(first.instances.read_text())["annotations"]
    assert annotation["bbox"] == [15, 5, 10, 10]
    assert found() == first
    assert "made before" in log.text
    labels = root / "labels" / "train" / "train.txt"
    labels.write_text("1 0.5 0.5 0.5 0.5\n")
    os.utime(labels, (1, 1))
    assert found().instances != first.instances
    labels.write_text("7 0.5 0.5 0.5 0.5\n")
    with pytest.raises(DataError, match="class 7"):
        found()
    assert len(list(cache.rglob("*.json"))) == 2  # nothing half-written


def test_the_folder_that_names_are_relative_to_is_part_of_the_state(tmp_path, cache):
    write_yolo_set(tmp_path)
    (tmp_path / "images" / "val" / "val.png").rename(tmp_path / "images" / "train" / "val.png")
    (tmp_path / "labels" / "val" / "val.txt").rename(tmp_path / "labels" / "train" / "val.txt")
    names = []
    for entry in ("images/train", "images"):  # the same images
        (tmp_path / "data.yaml").write_text(f"train: {entry}\nval: images/val\nnames: [a, b]\n")
        found = find_split(find_layout(tmp_path), "train")
        names.append([image["file_name"] for image in json.loads(found.instances.read_text())["images"]])
    assert names == [["train.png", "val.png"], ["train/train.png", "train/val.png"]]


def test_files_of_other_tools_are_no_layout(tmp_path):
    plain(tmp_path)
    (tmp_path / "notes.yaml").write_bytes("names: é\ntrain: 1".encode("latin-1"))
    (tmp_path / "cvat.xml").write_text("<annotations><version>1.1</version></annotations>")
    with pytest.raises(DataError, match="2 layouts at once"):  # it has the keys of YOLO's description
        find_layout(tmp_path)
    (tmp_path / "notes.yaml").write_bytes("title: é".encode("latin-1"))
    assert find_layout(tmp_path).kind == PLAIN


def test_roboflows_val_and_valid_at_once_are_refused(tmp_path):
    roboflow(tmp_path)
    write_coco(tmp_path / "val" / "_annotations.coco.json", tmp_path / "val")
    with pytest.raises(DataError, match="has two files for val: "):
        find_layout(tmp_path)
