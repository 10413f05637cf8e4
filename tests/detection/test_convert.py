"""Round trips between layouts, on real photographs and on small sets."""

import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from botnet.cli import main
from botnet.detection.coco import CocoInstances
from botnet.detection.convert import convert
from botnet.errors import BotnetError, ConfigError, DataError
from botnet.layouts.yolo import YoloSet
from botnet.masks import encode_mask
from tests.support.layouts import (
    shape,
    voc_object,
    write_coco,
    write_image,
    write_labelme,
    write_voc,
    write_yolo_set,
)


def objects(path):
    """For each image its objects: class name, box, mask, crowd."""
    file = CocoInstances(path)
    names = dict(zip(file.category_ids, file.class_names, strict=True))
    return {
        (image.file_name, image.height, image.width): [
            (names[a.category_id], list(a.bbox), file.mask_of(a), a.iscrowd, a.segmentation)
            for a in file.annotations_of(image.id)
        ]
        for image in file.images
    }


def test_coco_photographs_come_back_from_yolo_pixel_for_pixel(coco_by, tmp_path):
    there = convert(coco_by, tmp_path / "yolo", "yolo")
    assert there.losses == {
        "crowd regions, left out": 7,
        "masks of several polygons, joined: the same pixels": 39,
        "run lengths or overlapping polygons, outlined: the same pixels": 2,
    }
    back = convert(tmp_path / "yolo", tmp_path / "coco")
    assert not back.losses
    for split, number in (("train", 427), ("val", 94)):
        before = objects(coco_by / f"instances_{split}.json")
        after = objects(tmp_path / "coco" / f"{split}.json")
        assert before.keys() == after.keys()
        assert sum(map(len, after.values())) == there.splits[split]["objects"] == number
        for image, found in after.items():
            kept = [item for item in before[image] if not item[3]]
            for (name, box, mask, _, parts), (same, its_box, its_mask, _, polygon) in zip(
                kept, found, strict=True
            ):
                assert (name, mask) == (same, its_mask)
                np.testing.assert_allclose(its_box, box, atol=0.5)
                if len(parts) == 1:
                    assert polygon == parts  # every coordinate


def test_blood_cells_come_back_from_yolo_to_a_ten_thousandth_of_a_pixel(bccd, tmp_path):
    first = convert(bccd, tmp_path / "coco")
    assert {split: (n["images"], n["objects"]) for split, n in first.splits.items()} == {
        "train": (205, 2805),
        "val": (87, 1138),
        "test": (72, 945),
    }
    assert not convert(tmp_path / "coco", tmp_path / "yolo", "yolo").losses
    convert(tmp_path / "yolo", tmp_path / "back")
    for split in ("train", "val", "test"):
        # Images are sorted by name here, by list there.
        assert objects(tmp_path / "coco" / f"{split}.json") == objects(tmp_path / "back" / f"{split}.json")
        assert sorted(path.name for path in (tmp_path / "back" / split).iterdir()) == sorted(
            path.name for path in (tmp_path / "coco" / split).iterdir()
        )


def test_what_yolo_cannot_hold_is_counted(tmp_path):
    file = write_coco(tmp_path / "set" / "train.json", tmp_path / "set" / "train", file="deep/er/a.png")
    data = json.loads(file.read_text())
    ring = np.pad(np.pad(np.zeros((2, 2)), 2, constant_values=1), ((1, 13), (1, 33))).astype(np.uint8)
    first = data["annotations"][0]
    further = [
        {"segmentation": encode_mask(ring), "bbox": [1, 1, 6, 6]},
        {"segmentation": encode_mask(ring), "bbox": [1, 1, 6, 6], "iscrowd": 1},
        {"segmentation": None, "bbox": [4, 4, 8, 8], "category_id": 2},
        {"segmentation": [[2, 3, 12, 3]]},
        {"bbox": [2, 3, 0, 8]},
        {"bbox": [2, 3, 20, 8]},
        {"segmentation": [[2, 3, 40.75, 3, 40.75, 11, 2, 11]], "bbox": [2, 3, 38, 8]},
    ]
    data["annotations"] += [first | change | {"id": number} for number, change in enumerate(further, 2)]
    file.write_text(json.dumps(data))
    made = convert(tmp_path / "set", tmp_path / "yolo", "yolo")
    assert made.losses == {
        "run lengths or overlapping polygons, outlined: the same pixels": 1,
        "crowd regions, left out": 1,
        "boxes without a mask, written as rectangles": 1,
        "objects without a usable polygon, left out": 1,
        "left out or trimmed, as in training: degenerate polygon": 1,
        "left out or trimmed, as in training: empty box": 1,
        "boxes more than a pixel off their mask, which replaces them": 1,
        "polygons trimmed to the image": 1,
    }
    lines = (tmp_path / "yolo" / "labels" / "train" / "deep" / "er" / "a.txt").read_text().splitlines()
    assert len(lines) == made.splits["train"]["objects"] == 5
    assert lines[2] == "1 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6"
    convert(tmp_path / "yolo", tmp_path / "back")
    ((_, *found),) = [list(items) for items in objects(tmp_path / "back" / "train.json").values()]
    assert found[0][2] == encode_mask(ring)
    assert (tmp_path / "back" / "train" / "deep" / "er" / "a.png").is_file()


def test_boxes_alone_stay_boxes(tmp_path):
    write_voc(tmp_path / "voc" / "a.xml", voc_object(box=(3, 5, 12, 10)))
    convert(tmp_path / "voc", tmp_path / "coco")
    convert(tmp_path / "coco", tmp_path / "yolo", "yolo")
    assert (tmp_path / "yolo" / "labels" / "train" / "a.txt").read_text() == "0 0.175 0.35 0.25 0.3\n"
    assert json.loads((tmp_path / "coco" / "instances.json").read_text())["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 4, 10, 6], "iscrowd": 0, "area": 60}
    ]


def test_labelme_keeps_parts_and_their_area(tmp_path):
    (tmp_path / "labelme").mkdir()
    square, other = [[2, 3], [12, 3], [12, 11], [2, 11]], [[20, 3], [30, 3], [30, 11], [20, 11]]
    shapes = [shape("polygon", points, group_id=1) for points in (square, other)]
    write_labelme(tmp_path / "labelme" / "a.json", *shapes)
    convert(tmp_path / "labelme", tmp_path / "coco")
    (annotation,) = json.loads((tmp_path / "coco" / "instances.json").read_text())["annotations"]
    assert len(annotation["segmentation"]) == 2
    assert (annotation["area"], annotation["bbox"]) == (160, [2, 3, 28, 8])


def test_the_command_says_what_it_did(tmp_path, capsys):
    write_voc(tmp_path / "voc" / "a.xml", voc_object(further="<difficult>1</difficult>"))
    arguments = ["convert", str(tmp_path / "voc"), str(tmp_path / "coco")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert re.search(r"all\W+1\W+1\W+0\W+1\b", shown)  # images, links, copies, objects
    assert 'flags "difficult": 1' in shown
    assert main(arguments) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert main([*arguments[:2], str(tmp_path / "new"), "--to", "yolo"]) == 2
    assert "has Pascal VOC's layout, not COCO's" in capsys.readouterr().err


def test_coco_to_coco_is_refused(tmp_path):
    write_coco(tmp_path / "set" / "train.json", tmp_path / "set" / "train")
    with pytest.raises(ConfigError, match=r"is in COCO's format already; .* give --to yolo"):
        convert(tmp_path / "set", tmp_path / "out")


@pytest.mark.parametrize("layout", ["yolo", "voc", "labelme", "coco"])
def test_nothing_is_left_of_a_conversion_that_fails(tmp_path, layout):
    source = tmp_path / "source"
    source.mkdir()
    if layout == "yolo":
        write_yolo_set(source)
        (source / "labels" / "val" / "val.txt").write_text("9 0.5 0.5 0.1 0.1")
    elif layout == "voc":
        write_voc(source / "train" / "a.xml", voc_object())
        write_voc(source / "val" / "b.xml", voc_object(), size=False)
    elif layout == "labelme":
        write_labelme(source / "a.json", shape("polygon", [[1, 1], [5, 1], [5, 5]]))
        write_labelme(source / "b.json", shape("polygon", [[1, 1], [5, 1]]))
    else:
        write_coco(source / "train.json", source / "train")
        write_coco(source / "val.json", source / "val", file="b.png")
        (source / "val" / "b.png").unlink()
    with pytest.raises(DataError, match=r"line 1|b\.xml|b\.json|b\.png"):
        convert(source, tmp_path / "out", "yolo" if layout == "coco" else "coco")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_file_names_that_leave_the_folder_or_share_labels_are_refused(tmp_path):
    def refused(*names):
        file = write_coco(tmp_path / "set" / "train.json", tmp_path / "set" / "train")
        data = json.loads(file.read_text())
        data["images"] = [
            data["images"][0] | {"id": number, "file_name": name} for number, name in enumerate(names, 1)
        ]
        file.write_text(json.dumps(data))
        with pytest.raises(BotnetError) as error:
            convert(tmp_path / "set", tmp_path / "out", "yolo")
        return str(error.value)

    write_image(tmp_path / "set" / "train" / "a.jpg")
    assert "a.jpg and a.png of train would share their labels" in refused("a.png", "a.jpg")
    assert "../a.png: the file name leaves its folder" in refused("../a.png")


def test_class_lists_that_differ_are_refused(tmp_path):
    write_coco(tmp_path / "set" / "train.json", tmp_path / "set" / "train")
    write_coco(tmp_path / "set" / "val.json", tmp_path / "set" / "val", names=("cat", "cow"))
    with pytest.raises(
        DataError, match=r"val\.json: its categories, \['cat', 'cow'\], are not .*\['cat', 'dog'\]"
    ):
        convert(tmp_path / "set", tmp_path / "out", "yolo")


def test_converting_needs_no_torch():
    code = "import sys, botnet.detection.convert, botnet.detection.split; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_images_of_the_same_name_are_refused_and_stay_as_they_are(tmp_path):
    labels = tmp_path / "labelme"
    labels.mkdir()
    pictures = [write_image(tmp_path / camera / "1.png", shade) for shade, camera in enumerate("ab")]
    before = [picture.read_bytes() for picture in pictures]
    for number, picture in enumerate(pictures):
        write_labelme(labels / f"{number}.json", shape("rectangle", [[1, 1], [9, 9]]), imagePath=str(picture))
    with pytest.raises(DataError, match=r"b/1\.png and .*a/1\.png would both be 1\.png"):
        convert(labels, tmp_path / "out")
    assert [picture.read_bytes() for picture in pictures] == before


@pytest.mark.parametrize("path", ["../imgs/a.png", "../../imgs/a.png"])
def test_images_beside_the_annotations_come_into_the_new_folder(tmp_path, path):
    labels = tmp_path / "x" / "labelme"
    labels.mkdir(parents=True)
    write_image(labels / path)
    precious = tmp_path / "imgs" / "a.png"
    write_labelme(labels / "a.json", shape("rectangle", [[1, 1], [9, 9]]), imagePath=path)
    (tmp_path / "out").mkdir()
    present = precious.read_bytes() if precious.exists() else None
    convert(labels, tmp_path / "out" / "new")
    assert (precious.read_bytes() if precious.exists() else None) == present
    assert (tmp_path / "out" / "new" / "images" / "a.png").is_file()
    convert(tmp_path / "out" / "new", tmp_path / "yolo", "yolo")


def test_images_in_a_folder_called_images_keep_their_labels(tmp_path):
    file = write_coco(tmp_path / "set" / "train.json", tmp_path / "set" / "train", file="images/a.png")
    convert(file.parent, tmp_path / "yolo", "yolo")
    (sample,) = YoloSet(tmp_path / "yolo" / "data.yaml").samples("train", Counter())
    assert (sample.name, len(sample.objects)) == ("images/a.png", 1)


def test_an_image_that_is_listed_twice_is_placed_once(tmp_path):
    root = tmp_path / "set"
    write_yolo_set(root, yaml="train: train.txt\nval: images/val\nnames: [a, b]\n")
    (root / "train.txt").write_text("images/train/train.png\n" * 2)
    done = convert(root, tmp_path / "out")
    assert done.splits["train"] == {"images": 2, "objects": 2, "linked": 1}
