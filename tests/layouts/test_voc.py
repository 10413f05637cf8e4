"""Pascal VOC's files, read and refused."""

from collections import Counter
from pathlib import Path

import hotcoco
import pytest

from botnet.errors import DataError
from botnet.layouts.samples import Object
from botnet.layouts.voc import VocSet
from tests.support.layouts import voc_object, write_image, write_voc


def test_boxes_of_real_photographs_are_those_of_hotcoco(bccd):
    theirs = hotcoco.COCO.from_voc(str(bccd)).dataset
    data = VocSet(bccd)
    assert (
        data.names == [category["name"] for category in theirs["categories"]] == ["Platelets", "RBC", "WBC"]
    )
    losses: Counter[str] = Counter()
    found = {
        sample.name: [(item.label + 1, list(item.box)) for item in sample.objects]
        for split in data.splits
        for sample in data.samples(split, losses)
    }
    expected = {image["id"]: (image["file_name"], []) for image in theirs["images"]}
    for annotation in theirs["annotations"]:
        expected[annotation["image_id"]][1].append((annotation["category_id"], annotation["bbox"]))
    assert found == dict(expected.values())
    assert sum(map(len, found.values())) == 4888
    assert +losses == {'flags "truncated"': 1131, "boxes of a single pixel, kept": 2}
    lists = [
        path.read_text().split()
        for path in (bccd / "ImageSets/Main/train.txt", bccd / "ImageSets/Main/val.txt")
    ]
    assert [sum(1 for _ in data.samples(split, losses)) for split in ("train", "val")] == list(
        map(len, lists)
    )


def samples(root: Path, split: str = "all") -> list:
    return list(VocSet(root).samples(split, Counter()))


def test_the_first_pixel_is_1_and_the_last_is_inside(tmp_path):
    write_voc(tmp_path / "a.xml", voc_object(box=(1, 1, 40, 20)), voc_object("ant", (3, 5, 12, 10)))
    (sample,) = samples(tmp_path)
    assert (sample.name, sample.width, sample.height) == ("a.png", 40, 20)
    assert sample.objects == [Object(1, (0, 0, 40, 20)), Object(0, (2, 4, 10, 6))]


def test_splits_are_folders_and_valid_is_val(tmp_path):
    for split in ("train", "valid", "test"):
        write_voc(tmp_path / split / "a.xml", voc_object())
    assert VocSet(tmp_path).splits == ["train", "val", "test"]
    assert [sample.name for sample in samples(tmp_path, "val")] == ["valid/a.png"]


def test_the_image_is_found_by_the_name_of_the_file_where_the_stated_one_is_stale(tmp_path):
    write_image(tmp_path / "JPEGImages" / "a.png")
    write_voc(tmp_path / "Annotations" / "a.xml", voc_object(), image=Path("old.jpg"))
    (sample,) = samples(tmp_path)
    assert sample.name == "a.png"


@pytest.mark.parametrize(
    ("parts", "size", "message"),
    [
        ([voc_object()], False, r"a\.xml: has no <size><width>; add it"),
        ([voc_object(), voc_object("")], True, r"a\.xml: object 2: has no <name>"),
        ([voc_object(box=(9, 5, 3, 10))], True, r"object 1 \(cat\): its box runs from \(9, 5\) to \(3, 10\)"),
        ([voc_object(box=("x", 5, 3, 10))], True, r"object 1 \(cat\): <bndbox><xmin> is x, not a number"),
        ([voc_object(box=("nan", 5, 3, 10))], True, "<bndbox><xmin> is nan, not a number"),
        (["<object><name>cat</name></object>"], True, "object 1 .cat.: has no <bndbox><xmin>"),
        ([], True, "no annotation has an object"),
        (["<object>"], True, r"a\.xml: cannot be read as XML \(mismatched tag: line 1"),
    ],
)
def test_a_broken_annotation_is_named(tmp_path, parts, size, message):
    write_voc(tmp_path / "a.xml", *parts, size=size)
    with pytest.raises(DataError, match=message):
        samples(tmp_path)


def test_another_encoding_is_read_if_it_is_declared(tmp_path):
    file = write_voc(tmp_path / "a.xml", voc_object("café"))
    text = file.read_text()
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.xml: cannot be read as XML .*line 1.*its encoding"):
        VocSet(tmp_path)
    file.write_bytes(('<?xml version="1.0" encoding="latin-1"?>' + text).encode("latin-1"))
    assert VocSet(tmp_path).names == ["café"]


def test_missing_files_are_named(tmp_path):
    write_voc(tmp_path / "Annotations" / "a.xml", voc_object(), image=Path("a.jpg"))
    with pytest.raises(DataError, match=r"a\.xml: its image a\.jpg is neither in JPEGImages/ nor beside it"):
        samples(tmp_path)
    listed = tmp_path / "ImageSets" / "Main" / "train.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("a\nb\n")
    with pytest.raises(DataError, match=r"train\.txt, line 2: .*b\.xml: no such annotation"):
        VocSet(tmp_path)
    listed.write_text("\n")
    with pytest.raises(DataError, match=r"train\.txt: lists no image"):
        VocSet(tmp_path)


def test_trainval_is_train_where_that_is_missing_and_the_rest_is_counted(tmp_path):
    for name in ("a", "my image", "c", "d"):
        write_voc(tmp_path / "Annotations" / f"{name}.xml", voc_object())
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\nmy image\n")
    (lists / "test.txt").write_text("c 1\n")
    data, losses = VocSet(tmp_path), Counter()
    found = {split: [s.file.stem for s in data.samples(split, losses)] for split in data.splits}
    assert found == {"train": ["a", "my image"], "test": ["c"]}
    assert +losses == {"annotations that no list names, left out": 1}
    (lists / "val.txt").write_text("d\n")
    with pytest.raises(DataError, match=r"trainval\.txt: may hold images of .*val\.txt; add train\.txt"):
        VocSet(tmp_path)
    (lists / "train.txt").write_text("a\n")
    assert VocSet(tmp_path).splits == ["train", "val", "test"]


def test_files_that_are_in_no_split_or_share_an_image_are_refused(tmp_path):
    write_voc(tmp_path / "a.xml", voc_object())
    write_voc(tmp_path / "b.xml", voc_object(), image=tmp_path / "a.png")
    with pytest.raises(DataError, match=r"b\.xml: its image, .*a\.png, is that of .*a\.xml, too"):
        samples(tmp_path)
    write_voc(tmp_path / "test" / "c.xml", voc_object())
    with pytest.raises(DataError, match=r"a\.xml: one of 2 annotation files outside of .*test"):
        VocSet(tmp_path)
