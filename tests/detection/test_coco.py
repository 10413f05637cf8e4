"""Instances files and images, valid and broken."""

import copy
import io
import multiprocessing
import pickle
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as reference

from botnet.caching import cache_folder
from botnet.detection import coco, pack
from botnet.detection.browse import _objects
from botnet.detection.check import check_data
from botnet.detection.coco import CocoInstances
from botnet.detection.metric import CocoMetric, truth_of
from botnet.detection.results import to_coco, true_detections
from botnet.errors import DataError
from botnet.report.detection import _truth
from tests.support.detection import SQUARE, sound_set

# ---- what is sound


def test_labels_follow_category_ids_with_gaps(made):
    samples = made.dataset()
    assert samples.instances.category_ids == [3, 90]
    assert samples.instances.class_names == ["dog", "cat"]
    assert samples[0][1]["labels"].tolist() == [2, 1]


def test_the_photographs_have_no_problems(coco_by):
    for split, number in (("train", 48), ("val", 12)):
        file = coco_by / f"instances_{split}.json"
        assert check_data(file, coco_by / "images") == []
        instances = CocoInstances(file)
        assert len(instances.images) == number
        assert len(instances.class_names) == 80
        assert not instances.dropped


def test_annotations_are_those_that_pycocotools_finds(coco_by):
    from pycocotools.coco import COCO

    ours, theirs = CocoInstances(coco_by / "instances_train.json"), COCO(coco_by / "instances_train.json")
    for image in ours.images:
        found = [annotation.id for annotation in ours.annotations_of(image.id)]
        assert found == theirs.getAnnIds(imgIds=image.id)


def test_a_turned_photograph_passes_the_check_either_way(made):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(made.folder / "a.png").save(made.folder / "a.png", exif=exif)
    assert made.kinds() == {}
    made.data["images"][0] |= {"height": 40, "width": 30}
    assert made.kinds() == {}
    assert made.target()["valid"] == (40, 30)


# ---- what is broken


def no_json(made):
    made.file.write_text("images: []")


def an_array(made):
    made.file.write_text("[1, 2]")


def no_annotations(made):
    del made.data["annotations"]


def no_categories(made):
    made.data["categories"] = []


def no_images(made):
    made.data["images"] = []


def nameless_category(made):
    del made.data["categories"][1]["name"]


def image_without_height(made):
    del made.data["images"][1]["height"]


def flat_image(made):
    made.data["images"][1]["height"] = 0


def duplicate_category(made):
    made.data["categories"].append({"id": 3, "name": "cow"})


def duplicate_image(made):
    made.data["images"].append(made.data["images"][0])


def duplicate_annotation(made):
    made.annotation(id=100)


def unknown_image(made):
    made.annotation(image_id=8)


def unknown_category(made):
    made.annotation(category_id=4)


def box_of_three(made):
    made.annotation(bbox=[1, 2, 3])


def box_of_nan(made):
    made.annotation(bbox=[1, 2, 3, float("nan")])


def category_of_nan(made):
    made.data["categories"][0]["name"] = float("nan")


def polygon_of_words(made):
    made.annotation(segmentation=[["a", "b", "c", "d", "e", "f"]])


def segmentation_of_words(made):
    made.annotation(segmentation="everything")


def mask_of_another_size(made):
    made.annotation(segmentation={"size": [40, 30], "counts": [0, 1200]})


def mask_too_short(made):
    made.annotation(segmentation={"size": [30, 40], "counts": [0, 1199]})


def mask_without_counts(made):
    made.annotation(segmentation={"size": [30, 40]})


def mask_of_fractions(made):
    made.annotation(segmentation={"size": [30, 40], "counts": [0, 599.5, 600.5]})


def mask_of_negative_runs(made):
    made.annotation(segmentation={"size": [30, 40], "counts": [-1, 1201]})


def mask_of_fractional_size(made):
    made.annotation(segmentation={"size": [30.0, 40], "counts": [0, 1200]})


def huge_box(made):
    made.annotation(bbox=[1, 2, 10**400, 4])


def far_box(made):
    made.annotation(bbox=[1, 2, 1e300, 4])


def far_polygon(made):
    made.annotation(segmentation=[[0, 0, 10**9, 0, 10**9, 10]])


def area_of_text(made):
    made.annotation(area="600")


def huge_area(made):
    made.annotation(area=1e300)


def crowd_of_text(made):
    made.annotation(iscrowd="0")


def category_id_of_list(made):
    made.data["categories"][0]["id"] = [1]


def category_id_true(made):
    made.data["categories"].append({"id": True, "name": "cow"})


def huge_image(made):
    made.data["images"][0] |= {"height": 10**10, "width": 10**10}


def half_a_character(made):
    made.data["images"][0]["file_name"] = "\ud800.png"


def deep_nesting(made):
    made.file.write_text("[" * 100_000)


OF_FILE = {
    no_json: ("unreadable file", r"is not JSON.*give a COCO instances file"),
    an_array: ("unreadable file", r'has no list "images"; give a COCO instances file'),
    no_annotations: ("unreadable file", r'has no list "annotations"; give'),
    no_categories: ("no categories", r"categories: the list is empty; every data set needs"),
    no_images: ("no images", r"images: the list is empty; every data set needs"),
    nameless_category: (
        "malformed record",
        r"categories\[1\]: Object missing required field `name`; rewrite",
    ),
    image_without_height: (
        "malformed record",
        r"images\[1\]: Object missing required field `height`; rewrite",
    ),
    flat_image: ("empty image", r"image 12 \(b.png\): its size, 0 x 40, must be positive .*; correct"),
    duplicate_category: ("duplicate id", r"category 3: the id occurs twice; give"),
    duplicate_image: ("duplicate id", r"image 7: the id occurs twice; give"),
    duplicate_annotation: ("duplicate id", r"annotation 100: the id occurs twice; give"),
    unknown_image: ("unknown image", r"annotation 200: belongs to image 8, which is not in the file; add"),
    unknown_category: ("unknown category", r"annotation 200 of image 7 \(a.png\): is of category 4, .*; add"),
    box_of_three: (
        "malformed record",
        r"annotations\[2\]: Expected `array` of length 4 .* `\$\.annotations\[2\]\.bbox`; rewrite",
    ),
    box_of_nan: (
        "malformed record",
        r"annotations\[2\]: Expected `float`, got `array` - at `\$\.annotations\[2\]\.bbox\[3\]`",
    ),
    category_of_nan: (
        "malformed record",
        r"categories\[0\]: Expected `str`, got `array` - at `\$\.categories\[0\]\.name`",
    ),
    polygon_of_words: (
        "malformed record",
        r"annotation 200 of image 7 \(a.png\): a polygon is \['a'.*; rewrite",
    ),
    segmentation_of_words: (
        "malformed record",
        r"annotation 200 of image 7 \(a.png\): its segmentation is 'every",
    ),
    mask_of_another_size: (
        "broken mask",
        r"annotation 200 of image 7 \(a.png\): its mask is of size \[40, 30\]",
    ),
    mask_too_short: (
        "broken mask",
        r"annotation 200 of image 7 \(a.png\): its run lengths do not add up .*; rewrite",
    ),
    mask_without_counts: (
        "broken mask",
        r"annotation 200 of image 7 \(a.png\): its run lengths lack.*; rewrite",
    ),
    mask_of_fractions: (
        "broken mask",
        r"annotation 200 .*: its run lengths are \[0, 599\.5, .*whole.*; rewrite",
    ),
    mask_of_negative_runs: ("broken mask", r"annotation 200 .*: its run lengths are \[-1, .*from 0; rewrite"),
    mask_of_fractional_size: ("broken mask", r"annotation 200 .*: its mask is of size \[30\.0, 40\]"),
    huge_box: (
        "malformed record",
        r"annotations\[2\]: Number out of range - at `\$\.annotations\[2\]\.bbox\[2\]`; rewrite",
    ),
    far_box: (
        "malformed record",
        r"annotation 200 .*: its box .* reaches far beyond the 40 x 30 image; rewrite",
    ),
    far_polygon: (
        "malformed record",
        r"annotation 200 .*: a polygon reaches far beyond the 40 x 30.*; rewrite",
    ),
    area_of_text: (
        "malformed record",
        r"annotations\[2\]: Expected `float \| null`, got `str` - at .*area`; rewrite",
    ),
    huge_area: (
        "malformed record",
        r'annotations\[2\]: "area" is 1e\+300, not a number from 0 to.*; rewrite',
    ),
    crowd_of_text: (
        "malformed record",
        r"annotations\[2\]: Expected `bool \| float \| null`, got `str` - at .*; rewrite",
    ),
    category_id_of_list: (
        "malformed record",
        r"categories\[0\]: Expected `int`, got `array` - at .*id`; rewrite",
    ),
    category_id_true: (
        "malformed record",
        r"categories\[2\]: Expected `int`, got `bool` - at .*id`; rewrite",
    ),
    huge_image: ("huge image", r"image 7 \(a.png\): its size, 10000000000 x 10000000000, .* pixels; correct"),
    half_a_character: (
        "malformed record",
        r"images\[0\]: JSON is malformed: .*surrogate.*; rewrite",
    ),
    deep_nesting: ("unreadable file", r"is not JSON \(.*recursion.*\); give"),
}


@pytest.mark.parametrize("spoil", OF_FILE, ids=lambda spoil: spoil.__name__)
def test_a_broken_instances_file_is_refused_and_reported(made, spoil):
    kind, message = OF_FILE[spoil]
    made.write()
    spoil(made)
    if spoil not in (no_json, an_array, deep_nesting):
        made.write()
    with pytest.raises(DataError, match=r"instances\.json: " + message):
        CocoInstances(made.file)
    assert (kind, "error") in {
        (problem.kind, problem.severity) for problem in check_data(made.file, made.folder)
    }


def test_an_instances_file_that_is_not_there(made):
    with pytest.raises(DataError, match=r"nowhere\.json: cannot be read \(No such file"):
        CocoInstances(made.file.with_name("nowhere.json"))


def missing_image(made):
    (made.folder / "a.png").unlink()


def empty_folder(made):
    for file in made.folder.iterdir():
        file.unlink()


def no_folder(made):
    made.folder = made.folder / "elsewhere"


def name_too_long(made):
    made.data["images"][0]["file_name"] = 300 * "a"


OF_FOLDER = {
    name_too_long: ("missing image", r"image 7 \(a+\): .*a: no such file; restore it or remove"),
    missing_image: (
        "missing image",
        r"image 7 \(a.png\): .*images/a\.png: no such file; restore it or remove",
    ),
    empty_folder: ("no images in folder", r"images: holds none of the 2 images, not even a\.png; give"),
    no_folder: ("no images in folder", r"elsewhere: no such folder; give"),
}


@pytest.mark.parametrize("spoil", OF_FOLDER, ids=lambda spoil: spoil.__name__)
def test_missing_images_are_reported_before_the_first_step(made, spoil):
    kind, message = OF_FOLDER[spoil]
    spoil(made)
    with pytest.raises(DataError, match=message):
        made.dataset()
    assert made.kinds() == {(kind, "error"): 1}
    assert made.kinds(decode=False) == {(kind, "error"): 1}


def truncated_jpeg(made):
    made.data["images"][0]["file_name"] = "a.jpg"
    file = made.folder / "a.jpg"
    Image.open(made.folder / "a.png").save(file)
    file.write_bytes(file.read_bytes()[:-300])


def no_picture(made):
    (made.folder / "a.png").write_text("<html>404 Not Found</html>")


def wrong_size(made):
    made.data["images"][0]["width"] = 41


def garbled_mask(made):
    made.annotation(segmentation={"size": [30, 40], "counts": "garbage!!~~"})


def mask_that_breaks_off(made):
    made.annotation(segmentation={"size": [30, 40], "counts": "o"})


OF_CONTENT = {
    truncated_jpeg: ("broken image", r"a\.jpg: cannot be decoded \(.*truncated.*\); restore"),
    no_picture: ("broken image", r"a\.png: cannot be decoded \(.*\); restore"),
    wrong_size: ("wrong size", r"a\.png: the image is 40 x 30 pixels, its record says 41 x 30 .*; correct"),
    mask_that_breaks_off: (
        "broken mask",
        r"instances\.json: annotation 200 of image 7 \(a.png\): its mask cannot.*; rewrite",
    ),
    garbled_mask: (
        "broken mask",
        r"instances\.json: annotation 200 of image 7 \(a.png\): its mask cannot.*; rewrite",
    ),
}


@pytest.mark.parametrize("spoil", OF_CONTENT, ids=lambda spoil: spoil.__name__)
def test_broken_content_is_refused_on_access_and_reported(made, spoil):
    kind, message = OF_CONTENT[spoil]
    spoil(made)
    for train in (False, True):
        with pytest.raises(DataError, match=message):
            made.target(train)
        assert made.target(train, index=1)["image_id"] == 12
    assert made.kinds() == {(kind, "error"): 1}
    seen_in_header = {no_picture, wrong_size}
    assert made.kinds(decode=False) == ({(kind, "error"): 1} if spoil in seen_in_header else {})


def empty_box(made):
    made.annotation(bbox=[10, 5, 20, 0])


def polygon_of_two_points(made):
    made.annotation(segmentation=[[10, 5, 30, 5]])


def polygon_of_odd_length(made):
    made.annotation(segmentation=[[10, 5, 30, 5, 20, 25, 3]])


def mask_outside(made):
    made.annotation(segmentation=[[50, 5, 70, 5, 70, 25]])


def box_outside(made):
    made.annotation(bbox=[-20, 5, 10, 10])


WITHOUT_LOSS_OF_THE_REST = {
    empty_box: (
        "empty box",
        r"annotation 200 of image 7 \(a.png\)",
        r"its box is 20 x 0 pixels; it is left out",
    ),
    polygon_of_two_points: (
        "degenerate polygon",
        r"annotation 200 of image 7 \(a.png\)",
        r"has 4 coordinates",
    ),
    polygon_of_odd_length: (
        "degenerate polygon",
        r"annotation 200 of image 7 \(a.png\)",
        r"has 7 coordinates",
    ),
    mask_outside: (
        "outside image",
        r"annotation 200 of image 7 \(a.png\)",
        r"outside the 40 x 30 image; .* move",
    ),
    box_outside: (
        "outside image",
        r"annotation 200 of image 7 \(a.png\)",
        r"outside the 40 x 30 image; .* move",
    ),
}


@pytest.mark.parametrize("spoil", WITHOUT_LOSS_OF_THE_REST, ids=lambda spoil: spoil.__name__)
def test_what_coco_itself_contains_is_left_out_counted_and_reported(made, spoil):
    kind, record, message = WITHOUT_LOSS_OF_THE_REST[spoil]
    spoil(made)
    for train in (True, False):
        # In evaluation an object without a usable polygon still has its box.
        kept = 3 if not train and spoil not in (empty_box, box_outside) else 2
        assert made.dataset(train).instances.dropped == {kind: 1}
        assert made.target(train)["labels"].tolist() == [2, 1, 2][:kept]
        assert len(made.target(train)["masks"]) == kept
    (problem,) = check_data(made.write(), made.folder)
    assert (problem.kind, problem.severity) == (kind, "warning")
    assert re.fullmatch(record, problem.record)
    assert re.search(message, problem.message)


def test_categories_of_one_name_are_reported_and_told_apart(made):
    """As in Roboflow's exports, where a group may have the name of its class."""
    made.data["categories"] = [
        {"id": key, "name": name} for key, name in ((90, "cat"), (3, "cat"), (5, "dog"))
    ]
    assert made.kinds() == {("repeated name", "warning"): 2}
    (found, _) = check_data(made.file, made.folder)
    assert f"{found.record}: {found.message}".startswith(
        "category 90: another one is 'cat', too; metrics call"
    )
    instances = CocoInstances(made.file)
    assert instances.class_names == ["cat", "dog", "cat"]
    *_, counts = _objects(instances)
    assert counts == {"cat (id 3)": 1, "dog": 0, "cat (id 90)": 1}
    assert [category["name"] for category in _truth(instances)["categories"]] == list(counts)


def test_an_area_of_null_is_no_area(made):
    made.annotation(area=None)
    assert made.kinds() == {}
    assert made.target()["area"].tolist()[::2] == [400, 400]
    assert made.target(masks=False)["area"].tolist()[::2] == [400, 400]


def test_without_masks_a_box_is_kept_without_its_polygon(made):
    polygon_of_two_points(made)
    assert made.target(masks=False)["labels"].tolist() == [2, 1, 2]


def test_the_valid_polygons_of_an_annotation_are_kept(made):
    made.annotation(segmentation=[[1, 1, 2, 2], *SQUARE, [50, 5, 70, 5, 70, 25]])
    assert made.dataset().instances.dropped == {"degenerate polygon": 1, "outside image": 1}
    masks = made.target()["masks"]
    assert masks[2] == masks[0]


def test_what_reaches_beyond_the_image_is_trimmed_and_reported(made):
    made.annotation(bbox=[30, 5, 20, 20], segmentation=[[30, 5, 50, 5, 50, 25, 30, 25]])
    assert reference.area(made.target()["masks"][2]) == 10 * 20
    assert made.target(train=True)["masks"][2].sum() == 10 * 20
    assert made.dataset().instances.dropped == {"beyond image": 2}
    assert made.kinds() == {("beyond image", "warning"): 2}


def test_rounding_beyond_the_image_is_not_a_problem(made):
    made.annotation(bbox=[-0.5, 5, 41, 20], segmentation=[[-0.5, 5, 40.5, 5, 40.5, 25]])
    assert made.kinds() == {}


def test_all_problems_are_listed_at_once(made):
    made.data["categories"].append({"id": 3, "name": "cow"})
    made.data["images"].append({"id": 13, "file_name": "gone.png", "height": 5, "width": 5})
    made.data["images"].append({"id": 14, "file_name": "b.png"})
    made.annotation(id=201, image_id=99)
    made.annotation(id=202, image_id=99)
    made.annotation(id=203, bbox=[3, 3, 0, 0])
    made.annotation(id=204, category_id=5)
    wrong_size(made)
    assert made.kinds() == {
        ("duplicate id", "error"): 1,
        ("malformed record", "error"): 1,
        ("unknown image", "error"): 2,
        ("empty box", "warning"): 1,
        ("unknown category", "error"): 1,
        ("missing image", "error"): 1,
        ("wrong size", "error"): 1,
    }


# ---- packing


def mix(made):
    """Add every kind of annotation to the valid ones."""
    made.data["images"] += [{"id": 3, "file_name": "é/😀.png", "height": 30, "width": 40}]
    made.data["images"][1]["id"] = -(2**63)
    whole, crowd = [[0.1, 0, 40, 1e-3, 40, 30, 0, 30.0]], {"size": [30, 40], "counts": [7, 1193]}
    for number, change in enumerate(
        [
            {"image_id": -(2**63), "segmentation": whole, "area": 3.5},
            {"segmentation": crowd, "iscrowd": 1},
            {"segmentation": {"size": [30, 40], "counts": "PP1"}},
            {"segmentation": None, "area": None, "iscrowd": None},
            {"segmentation": [[1, 1, 2, 2]]},
            {"segmentation": [[1, 1, 2, 2], *SQUARE], "bbox": [30, 5, 20, 20]},
            {"bbox": [3, 3, 0, 0]},
            {"segmentation": [[]]},
        ]
    ):
        made.annotation(id=300 + number, **change)


def contents(instances):
    """All that an instances file tells."""
    images = list(instances.images)
    of_images = [instances.annotations_of(image.id) for image in images]
    rest = instances.class_names, instances.category_ids, instances.dropped, instances.maskless
    return images, of_images, *rest


@pytest.fixture
def cached(made, tmp_path, monkeypatch):
    """A set of every kind of annotation, of which the cache takes note."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pack, "SMALLEST_CACHED", 0)
    mix(made)
    made.write()
    return made


def cache_files():
    return sorted(file for file in cache_folder().iterdir() if file.suffix != ".lock")


def test_the_packed_records_are_those_of_the_file(cached):
    images, of_images, _, _, dropped, maskless = contents(CocoInstances(cached.file, cache=False))
    assert [image.file_name for image in images] == [image["file_name"] for image in cached.data["images"]]
    assert dropped == {"degenerate polygon": 2, "beyond image": 1, "empty box": 1}
    assert maskless.record == "annotation 303 of image 7 (a.png)"
    records = {record["id"]: record for record in cached.data["annotations"]}
    kept = {304: [], 305: SQUARE, 307: None}
    found = [annotation for of_image in of_images for annotation in of_image]
    assert [a.id for a in found] == [100, 105, 301, 302, 303, 304, 305, 307, 300]
    for annotation in found:
        record = records[annotation.id]
        assert list(annotation.bbox) == record["bbox"]
        assert annotation.segmentation == kept.get(annotation.id, record["segmentation"])
        assert annotation.area == record.get("area")
        assert annotation.iscrowd == bool(record.get("iscrowd"))


def test_a_cached_file_is_read_once_and_pickled_as_a_path(cached, monkeypatch):
    first = CocoInstances(cached.file)
    (file,) = cache_files()
    monkeypatch.setattr("botnet.detection.coco.decode", None)  # nothing is decoded again
    again = CocoInstances(cached.file)
    assert contents(first) == contents(again) == contents(pickle.loads(pickle.dumps(first)))
    assert len(pickle.dumps(first)) < 2000
    assert not again._pack.arrays["bbox"].flags.writeable
    assert cache_files() == [file]


def test_another_file_has_another_cache(cached):
    CocoInstances(cached.file)
    cached.data["annotations"][0]["bbox"][0] = 11
    assert CocoInstances(cached.write()).annotations_of(7)[0].bbox[0] == 11
    assert len(cache_files()) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file[:-1],
        lambda file: file[:5],
        lambda file: b"",
        lambda file: b"\1" + file[1:],
        lambda file: file[:-20] + bytes(20),
    ],
    ids=["last byte", "beginning only", "empty", "first byte", "end of zeros"],
)
def test_a_torn_cache_is_made_again(cached, caplog, spoil):
    whole = contents(CocoInstances(cached.file, cache=False))
    CocoInstances(cached.file)
    (file,) = cache_files()
    sound = file.read_bytes()
    file.unlink()
    file.write_bytes(spoil(sound))
    assert contents(CocoInstances(cached.file)) == whole
    assert file.read_bytes() == sound
    assert "cannot be used" in caplog.text
    assert cache_files() == [file]


def test_a_cache_that_cannot_be_written_costs_a_line(cached, caplog):
    cache_folder().parent.mkdir()
    cache_folder().write_text("a file is in the way")
    whole = contents(CocoInstances(cached.file, cache=False))
    assert not caplog.text
    assert contents(CocoInstances(cached.file)) == whole
    (record,) = caplog.records
    assert "cannot be written" in record.message


def test_a_full_disk_leaves_no_torn_file(cached, monkeypatch):
    whole, write = contents(CocoInstances(cached.file, cache=False)), pack.write_pack

    def fill(file, parts, about):
        write(file, parts, about)
        if hasattr(file, "fileno") and not isinstance(file, io.BytesIO):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack, "write_pack", fill)
    assert contents(CocoInstances(cached.file)) == whole
    assert cache_files() == []


def test_processes_that_build_at_once_map_one_file(cached, monkeypatch):
    build = pack._store

    def late(path, parts, about):
        build(path, parts, about)  # another process is faster
        made_first = path.stat().st_ino
        mine = build(path, parts, about)
        assert path.stat().st_ino == made_first
        return mine

    monkeypatch.setattr(pack, "_store", late)
    assert contents(CocoInstances(cached.file)) == contents(CocoInstances(cached.file, cache=False))
    assert len(cache_files()) == 1


def read_and_count(file, start, queue):
    """Read a file at the same time as others; whether this process has packed it."""
    packed_here, build = [], coco._build
    coco._build = lambda *given: (packed_here.append(1), time.sleep(0.5), build(*given))[-1]
    start.wait(60)
    queue.put((contents(CocoInstances(file)), len(packed_here)))


@pytest.mark.long
def test_of_processes_that_start_at_once_one_packs(cached):
    context = multiprocessing.get_context("fork")
    start, queue = context.Event(), context.Queue()
    ranks = [context.Process(target=read_and_count, args=(cached.file, start, queue)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    start.set()
    answers = [queue.get(timeout=120) for _ in ranks]
    for rank in ranks:
        rank.join(60)
    assert sum(count for _, count in answers) == 1
    assert [answer for answer, _ in answers] == [contents(CocoInstances(cached.file, cache=False))] * 4


def test_what_a_killed_process_left_of_the_cache_is_removed(cached):
    size = cached.file.stat().st_size
    cache_folder().mkdir(parents=True)
    left, other = (cache_folder() / f".{number}-0123-abc" for number in (size, size + 1))
    left.write_bytes(b"half")
    other.write_bytes(b"perhaps being written now")
    CocoInstances(cached.file)
    assert not left.exists()
    assert other.exists()


@pytest.mark.long
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_map_the_cached_file(cached, method):
    cached.data = sound_set()
    samples = cached.dataset()
    with multiprocessing.get_context(method).Pool(1) as pool:
        truth, paths = pool.apply(read_and_list, (samples,))
    assert truth["boxes"].tolist() == samples[0][1]["boxes"].tolist()
    (file,) = cache_files()
    assert str(file) in paths


def read_and_list(samples):
    """The first target, and the files that the process has mapped."""
    return samples[0][1], Path("/proc/self/maps").read_text()


# ---- anything at all

PIXELS = st.sampled_from([-400, -1, 0, 1e-300, 1e-5, 0.5, 3, 7, 29.99999999, 30, 40, 41, 100])
NUMBERS = PIXELS | st.sampled_from([1e9, 1e300, 2**31, 2**63, 10**400]) | st.floats()
TEXTS = st.sampled_from(["", "0", "a.png", "..", "\0", "\ud800", "a" * 300, "o", "PP1"]) | st.text(max_size=8)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
ANYTHING = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=5)
RUNS = st.lists(st.integers(0, 600), max_size=3).map(lambda runs: [*runs, 1200 - sum(runs)])
# Values of an annotation that are nearly right.
FIELDS = {
    "bbox": st.lists(PIXELS, min_size=4, max_size=4),
    "segmentation": st.lists(st.lists(PIXELS, max_size=8), max_size=2)
    | st.builds(lambda counts: {"size": [30, 40], "counts": counts}, TEXTS | RUNS),
    "iscrowd": st.sampled_from([None, 0, 1, True, 1.0]),
    "area": NUMBERS | st.none(),
}


@st.composite
def spoilt_sets(draw):
    """The valid set with a few of its values replaced."""
    data = copy.deepcopy(sound_set())
    for field in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=3)):
        draw(st.sampled_from(data["annotations"]))[field] = draw(FIELDS[field])
    for _ in range(draw(st.integers(0, 2))):
        node = data
        while node:
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            if isinstance(node[key], dict | list) and draw(st.integers(0, 3)):
                node = node[key]
            else:
                node[key] = draw(ANYTHING)
                break
    return data


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=spoilt_sets())
def test_the_check_never_raises_and_what_passes_it_can_be_used(made, data):
    made.data = data
    problems = check_data(made.write(), made.folder)
    assert all(f"{problem.record}: {problem.message}".encode() for problem in problems)
    errors = {problem.kind for problem in problems if problem.severity == "error"}
    if errors - {"no mask"}:
        return
    masks = not errors
    samples = made.dataset(train=True, masks=masks)
    for index in range(len(samples)):
        image, target = samples[0, index]
        assert torch.isfinite(image).all()
        boxes = target["boxes"]
        assert torch.isfinite(boxes).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert len(target["labels"]) == len(target["area"]) == len(boxes)
    names, ids = samples.instances.class_names, samples.instances.category_ids
    metric = CocoMetric(names, ids, masks)
    for _, target in made.dataset(masks=masks):
        truth = truth_of(target)
        assert all(torch.isfinite(truth[key]).all() for key in ("boxes", "area"))
        found = true_detections(truth, names, target["size"])
        found.confidence = np.ones(len(found), np.float32)
        found.data["category_id"] = np.array(ids)[found.class_id]
        metric.update(to_coco(found, target["image_id"]), truth)
    assert metric.report()["box"]["AP"] <= 1
