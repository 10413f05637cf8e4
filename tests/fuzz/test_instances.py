"""Instances files that are nearly right: an error that names the record, or what Python's decoder reads."""

import json
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as reference

from botnet.detection.check import check_data
from botnet.detection.coco import CocoInstances
from botnet.errors import DataError
from tests.support.fuzz import cases, nearly

HEIGHT, WIDTH = 6, 8
RLE = {"size": [HEIGHT, WIDTH], "counts": [10, 3, 35]}
POLYGON = [[1, 1, 5, 1, 5, 4]]
SOUND = {
    "images": [
        {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
        {"id": 2, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 3], "segmentation": POLYGON},
        {"id": 11, "image_id": 2, "category_id": 5, "bbox": [0, 0, 8, 6], "iscrowd": 1, "segmentation": RLE},
        {"id": 12, "image_id": 2, "category_id": 3, "bbox": [2, 2, 1, 2], "segmentation": [], "area": 2.0},
    ],
}  # fmt: skip
# JSON, and what some writers take for it.
FRAGMENTS = [
    "NaN", "Infinity", "-Infinity", "1e999", "-0", "0.0", "1e-320", "true", "null", '""', '"0"', "[]", "{}",
    "[[]]", "9223372036854775807", "9223372036854775808", "-1", "1" + "0" * 400, "1.5", '"\\ud800"', "]",
    '"\\u0000"', '"../../../etc/passwd"', '"/etc/passwd"', '"a.png"', '"' + "x" * 300 + '"', "1 1", "//",
    "[" * 200 + "]" * 200, "[" * 5000 + "]" * 5000, '{"a":' * 3000 + "1" + "}" * 3000, "[1,2,3,4,5,6]",
    "[[1,2,3,4,5,6]]", "[[1e9,1,2,3,4,5]]", "[[NaN,1,2,3,4,5]]", "[[1,2,3,4,5,1e308]]", '[["1",1,2,3,4,5]]',
    "[1,1,1e308,1e308]", '{"counts":[48]}', '{"size":[6,8],"counts":"PPYo0"}', '{"size":[6,8],"counts":[48]}',
    '{"size":[8,6],"counts":[48]}', '{"size":[6,8],"counts":[-1,49]}', '{"size":[6,8],"counts":""}',
    '{"size":[6,8],"counts":"\\u00ff\\u0100"}', '{"size":[6.0,8],"counts":[48]}',
    '{"size":[6,8],"counts":[1e3]}',
]  # fmt: skip
OF_IMAGE_FILES = {"no images in folder", "missing image", "broken image", "wrong size"}
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-16-be")


def places(node, path=()):
    """The ways to all values."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def files(draw):
    """A sound file with some values replaced, perhaps in another encoding, perhaps with bytes changed."""
    data, fragments = json.loads(json.dumps(SOUND)), []
    for number in range(draw(st.integers(0, 2))):
        *way, key = draw(st.sampled_from(list(places(data))))
        node = data
        for step in way:
            node = node[step]
        if isinstance(node, dict) and draw(st.integers(0, 4)) == 0:
            del node[key]
            continue
        node[key] = f"@{number}@"
        fragments.append((f'"@{number}@"', draw(st.sampled_from(FRAGMENTS))))
    text = json.dumps(data)
    for marker, fragment in fragments:
        text = text.replace(marker, fragment)
    if draw(st.integers(0, 9)) == 0:
        text = text.replace('"id"', '"id": 7, "id"', draw(st.integers(1, 4)))  # the last one counts
    contents = text.encode(draw(st.sampled_from(ENCODINGS)), errors="replace")
    return draw(nearly(contents)) if draw(st.integers(0, 3)) == 0 else contents


@cases(120)
@given(contents=files())
def test_an_instances_file_is_read_as_python_reads_it_or_refused_by_record(contents):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        path.write_bytes(contents)
        try:
            instances = CocoInstances(path, cache=False)
        except DataError as error:
            check_refusal(str(error), path, folder)
            return
        data = json.loads(contents)
        assert [image.id for image in instances.images] == [image["id"] for image in data["images"]]
        names = {record["id"]: record["name"] for record in data["categories"]}
        assert instances.class_names == [names[key] for key in sorted(names)]
        records = {record["id"]: record for record in data["annotations"]}
        masks = True
        for image in instances.images:
            for annotation in instances.annotations_of(image.id):
                record = records[annotation.id]
                assert list(annotation.bbox) == record["bbox"]
                assert annotation.segmentation in (record.get("segmentation"), None, [])
                masks &= masks_agree(instances, annotation, image)
        kinds = {problem.kind for problem in check_data(path, Path(folder)) if problem.severity == "error"}
        assert kinds - OF_IMAGE_FILES <= ({"no mask"} if masks else {"no mask", "broken mask"})


def check_refusal(message, path, folder):
    """It names the file, and the record or the list; check-data finds an error, too."""
    assert message.startswith(f"{path}: ")
    where = message.removeprefix(f"{path}: ")
    known = (
        "image ",
        "images",
        "annotation ",
        "annotations",
        "category ",
        "categories",
        "is not JSON",
        "has no list",
    )
    assert where.startswith(known), where
    assert len(message) < 1500
    assert any(problem.severity == "error" for problem in check_data(path, Path(folder)))


def masks_agree(instances, annotation, image):
    """Whether a mask can be decoded; then it is that of COCO's own code."""
    try:
        mask = instances.mask_of(annotation)
    except DataError as error:
        assert f"annotation {annotation.id} of image {image.id}" in str(error)
        return False
    segmentation, size = annotation.segmentation or [], (image.height, image.width)
    if not segmentation:
        expected = np.zeros(size, np.uint8)
    elif isinstance(segmentation, list):
        expected = reference.decode(reference.merge(reference.frPyObjects(segmentation, *size)))
    elif isinstance(segmentation["counts"], list):
        runs = np.array(segmentation["counts"])
        expected = np.repeat(np.arange(len(runs)) % 2, runs).reshape(size[::-1]).T
    else:
        expected = reference.decode(segmentation)
    assert np.array_equal(reference.decode(mask), expected)
    return True
