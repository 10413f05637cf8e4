"""Instances files and images as people have them, sound and broken."""

import copy
import json
import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle_api
from PIL import Image
from pycocotools import mask as reference

from botnet.detection.coco import (
    CocoDataset,
    CocoInstances,
    DataError,
    EvalDataset,
    TrainDataset,
    check_data,
    collate,
    load_image,
    load_placed,
)
from botnet.detection.masks import compress_mask, decode_mask, encode_mask
from botnet.detection.transforms import EvalTransform, Placement, TrainTransform, denormalise

SQUARE = [[10, 5, 30, 5, 30, 25, 10, 25]]


def sound_set() -> dict:
    """Two 40 x 30 images, ids with gaps, categories out of order, no optional key anywhere."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 30, "width": 40},
            {"id": 12, "file_name": "b.png", "height": 30, "width": 40},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 100, "image_id": 7, "category_id": 90, "bbox": [10, 5, 20, 20], "segmentation": SQUARE},
            {
                "id": 105,
                "image_id": 7,
                "category_id": 3,
                "bbox": [0, 0, 4, 6],
                "segmentation": [[0, 0, 4, 0, 4, 6]],
            },
        ],
    }


class Set:
    """An instances file and a folder on disk."""

    def __init__(self, root: Path) -> None:
        self.file, self.folder, self.data = root / "instances.json", root / "images", sound_set()
        self.folder.mkdir()
        rng = np.random.default_rng(0)
        for image in self.data["images"]:
            pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.folder / image["file_name"])

    def write(self) -> Path:
        self.file.write_text(json.dumps(self.data))
        return self.file

    def annotation(self, **changes) -> None:
        """Add an annotation to the sound ones: the first of them, changed."""
        self.data["annotations"].append(copy.deepcopy(self.data["annotations"][0]) | {"id": 200} | changes)

    def dataset(self, train: bool = False, **arguments) -> CocoDataset:
        """The set on a canvas of 40, where its pictures are as they are."""
        instances = CocoInstances(self.write())
        if train:
            return TrainDataset(instances, self.folder, TrainTransform(40, (1, 1), flip=0), **arguments)
        return EvalDataset(instances, self.folder, EvalTransform(40), **arguments)

    def target(self, train: bool = False, index: int = 0, **arguments) -> dict:
        _, target = self.dataset(train, **arguments)[(0, index) if train else index]
        return target

    def kinds(self, **arguments) -> Counter:
        return Counter(
            (problem.kind, problem.severity) for problem in check_data(self.write(), self.folder, **arguments)
        )


@pytest.fixture
def made(tmp_path: Path) -> Set:
    return Set(tmp_path)


# ---- what is sound


def test_labels_follow_category_ids_with_gaps(made):
    samples = made.dataset()
    assert samples.instances.category_ids == [3, 90]
    assert samples.instances.class_names == ["dog", "cat"]
    assert samples[0][1]["labels"].tolist() == [2, 1]


def test_a_sample_is_what_the_file_says(made):
    image, target = made.dataset()[0]
    shown = denormalise(image)[:, :30].permute(1, 2, 0).numpy()
    assert np.array_equal(shown, np.asarray(Image.open(made.folder / "a.png")))
    assert image.dtype == torch.float32
    assert target["boxes"].tolist() == [[10, 5, 30, 25], [0, 0, 4, 6]]
    assert target["boxes"].dtype == torch.float32
    assert target["image_id"] == 7
    assert target["size"] == target["valid"] == (30, 40)
    assert target["scale"] == (1, 1)
    square = np.zeros((30, 40), np.uint8)
    square[5:25, 10:30] = 1
    assert target["masks"][0] == encode_mask(square)
    # The file has no areas.
    assert target["area"].tolist() == [400, rle_api.decode(target["masks"][1]).sum()]
    assert target["iscrowd"].tolist() == [False, False]


def test_a_training_sample_is_what_the_file_says(made):
    image, target = made.dataset(train=True)[0, 0]
    shown = denormalise(image)[:, :30].permute(1, 2, 0).numpy()
    assert np.array_equal(shown, np.asarray(Image.open(made.folder / "a.png")))
    square = torch.zeros(40, 40, dtype=torch.uint8)
    square[5:25, 10:30] = 1
    assert torch.equal(target["masks"][0], square)
    rows, columns = np.nonzero(target["masks"][1].numpy())
    corner = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert target["boxes"].tolist() == [[10, 5, 30, 25], corner]
    assert target["area"].tolist() == target["masks"].sum((1, 2)).tolist()
    assert target["labels"].tolist() == [2, 1]
    assert {key: target[key] for key in ("image_id", "size", "valid", "scale")} == {
        "image_id": 7,
        "size": (30, 40),
        "valid": (30, 40),
        "scale": (1, 1),
    }


def test_the_area_of_the_file_is_kept(made):
    made.annotation(area=123.5)
    assert made.target()["area"][2] == 123.5


def test_an_image_without_annotations_has_tensors_of_length_zero(made):
    for train in (True, False):
        target = made.target(train, index=1)
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].dtype == torch.int64
        assert len(target["labels"]) == len(target["area"]) == len(target["masks"]) == 0
    assert made.target(train=True, index=1)["masks"].shape == (0, 40, 40)


def test_crowd_is_kept_for_scoring_and_left_out_of_training(made):
    counts = [0, 1200]
    made.annotation(iscrowd=1, segmentation={"size": [30, 40], "counts": counts})
    assert made.target()["iscrowd"].tolist() == [False, False, True]
    assert rle_api.decode(made.target()["masks"][2]).all()
    assert made.target(train=True)["labels"].tolist() == [2, 1]


class RightHalf:
    """A transform that shows the right half of the pictures."""

    canvas = 40

    def place(self, size, chance):
        return Placement(size, size, top=0, left=20, valid=(30, 20))


@pytest.mark.parametrize("masks", [True, False])
def test_training_keeps_a_hundred_objects_of_those_that_the_transform_leaves(made, masks):
    for number in range(150):
        left, category = (22, 90) if number >= 5 else (1, 3)
        corner = [left, 2, left + 9, 2, left + 9, 12]
        made.annotation(id=1000 + number, category_id=category, bbox=[left, 2, 9, 10], segmentation=[corner])
    samples = TrainDataset(CocoInstances(made.write()), made.folder, RightHalf(), masks=masks)
    _, target = samples[0, 0]
    assert {len(target[key]) for key in ("boxes", "labels", "area")} == {100}
    assert target["labels"].tolist() == [2] * 100
    assert len(target["masks"]) == 100 if masks else "masks" not in target
    assert len(made.target()["labels"]) == 152


@pytest.mark.parametrize("copy_paste", [0.0, 1.0])
def test_a_training_sample_depends_on_seed_epoch_and_index_alone(made, copy_paste):
    def sample(seed, epoch, index):
        instances, transform = CocoInstances(made.write()), TrainTransform(24, (0.5, 2))
        image, target = TrainDataset(instances, made.folder, transform, seed=seed, copy_paste=copy_paste)[
            epoch, index
        ]
        return [image, *(target[key] for key in ("boxes", "labels", "masks", "area"))]

    first = sample(0, 0, 0)
    torch.manual_seed(1)
    assert all(map(torch.equal, first, sample(0, 0, 0)))
    others = [sample(0, 0, 1), sample(0, 1, 0), sample(1, 0, 0)]
    assert not any(torch.equal(first[0], other[0]) for other in others)


def test_copy_paste_needs_masks_and_a_probability(made):
    for arguments in ({"copy_paste": 1.5}, {"copy_paste": 0.5, "masks": False}):
        with pytest.raises(DataError, match="it is a probability"):
            made.dataset(train=True, **arguments)


def test_boxes_alone_are_enough_without_masks(made):
    for annotation in made.data["annotations"]:
        del annotation["segmentation"]
    for train in (False, True):
        target = made.target(train, masks=False)
        assert "masks" not in target
        assert target["boxes"].tolist() == [[10, 5, 30, 25], [0, 0, 4, 6]]
        assert target["area"].tolist() == [400, 24]
    assert made.kinds(masks=False) == {}
    assert made.kinds() == {("no mask", "error"): 2}
    with pytest.raises(
        DataError, match=r"instances.json: annotation 100 of image 7 \(a.png\).*no segmentation"
    ):
        made.dataset()


def test_files_in_subfolders(made):
    (made.folder / "deep" / "er").mkdir(parents=True)
    (made.folder / "a.png").rename(made.folder / "deep" / "er" / "a.png")
    made.data["images"][0]["file_name"] = "deep/er/a.png"
    assert made.kinds() == {}
    assert made.target()["image_id"] == 7


def test_a_batch_has_one_canvas(made):
    samples = made.dataset()
    images, targets = collate([samples[0], samples[1]])
    assert torch.equal(images, torch.stack([samples[0][0], samples[1][0]]))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert [target["image_id"] for target in targets] == [7, 12]


def test_datasets_travel_to_workers(made):
    samples = pickle.loads(pickle.dumps(made.dataset()))
    assert samples[0][1]["labels"].tolist() == [2, 1]


def test_the_photographs_are_without_fault(coco_by):
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
        found = [annotation["id"] for annotation in ours.annotations_of(image["id"])]
        assert found == theirs.getAnnIds(imgIds=image["id"])


# ---- masks


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks_are_those_of_pycocotools_in_every_encoding(coco_by):
    for split in ("train", "val"):
        instances = CocoInstances(coco_by / f"instances_{split}.json")
        for image in instances.images:
            size = image["height"], image["width"]
            for annotation in instances.annotations_of(image["id"]):
                segmentation = annotation["segmentation"]
                encoded = reference.frPyObjects(segmentation, *size)
                whole = reference.merge(encoded) if isinstance(encoded, list) else encoded
                expected = reference.decode(whole)
                as_text = {"size": list(size), "counts": whole["counts"].decode()}
                np.testing.assert_array_equal(decode_mask(segmentation, *size), expected)
                np.testing.assert_array_equal(decode_mask(as_text, *size), expected)
                assert encode_mask(expected) == as_text
                assert compress_mask(segmentation, *size) == compress_mask(as_text, *size) == as_text


@pytest.mark.parametrize("mask", [np.zeros((5, 3)), np.ones((5, 3)), np.eye(4), np.ones((1, 1))])
def test_encoding_returns(mask):
    for kind in (np.uint8, bool):
        encoded = json.loads(json.dumps(encode_mask(mask.astype(kind))))
        np.testing.assert_array_equal(decode_mask(encoded, *mask.shape), mask)
        np.testing.assert_array_equal(rle_api.decode(encoded), mask)


def test_the_polygons_of_an_object_are_one_mask():
    mask = decode_mask([[0, 0, 4, 0, 4, 4, 0, 4], [6, 2, 10, 2, 10, 6, 6, 6]], 8, 12)
    expected = np.zeros((8, 12))
    expected[:4, :4] = expected[2:6, 6:10] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    "counts", [encode_mask(np.ones((4, 5)))["counts"], [0, 20], [0, 21], "garbage!!~~", ""]
)
def test_run_lengths_of_another_size_are_refused(counts):
    for read in (decode_mask, compress_mask):
        with pytest.raises(ValueError, match=r"."):
            read({"size": [4, 5], "counts": counts}, 5, 4)


# ---- pictures


COLOURS = np.array(
    [[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [128, 128, 128]], [[0, 0, 0], [255, 255, 255]]]
)


def colour_picture() -> Image.Image:
    """40 x 60, six even patches: turned or mirrored, it is another one."""
    return Image.fromarray(COLOURS.astype(np.uint8)).resize((40, 60), Image.Resampling.NEAREST)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("L", "jpg"), ("P", "png"), ("1", "png"), ("LA", "png"), ("RGBA", "png"), ("CMYK", "jpg")],
)
def test_pictures_of_every_mode_become_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"picture.{suffix}"
    picture = (
        colour_picture() if mode != "1" else colour_picture().convert("L").point(lambda p: 255 * (p > 99))
    )
    if mode in ("L", "LA"):
        picture = picture.convert("L")
    expected = np.asarray(picture.convert("RGB")).astype(int)
    (picture.quantize() if mode == "P" else picture.convert(mode)).save(path)
    image = load_image(path, (60, 40))
    assert image.mode == "RGB"
    assert abs(np.asarray(image).astype(int) - expected).mean() < 8


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    path = tmp_path / "deep.png"
    grey = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)
    Image.fromarray(grey).save(path)
    np.testing.assert_array_equal(np.asarray(load_image(path))[..., 0], grey // 256)


# How each EXIF orientation stores an upright picture; the inverse of what a viewer does.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_orientation_is_obeyed_where_the_record_agrees(tmp_path, orientation, suffix):
    path = tmp_path / f"turned.{suffix}"
    upright = np.asarray(colour_picture())
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {}))

    for size in ((60, 40), None):
        assert abs(np.asarray(load_image(path, size)).astype(int) - upright).mean() < 4
        # Resized, it is cut and turned alike.
        placed = load_placed(path, EvalTransform(30).place((60, 40)))
        assert abs(placed.astype(int) - upright[::2, ::2]).mean() < 9
    if orientation >= 5:  # annotated as stored: the record has the stored size
        assert abs(np.asarray(load_image(path, (40, 60))).astype(int) - np.asarray(stored)).mean() < 4


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


OF_FILE = {
    no_json: ("unreadable file", r"is no JSON.*give a COCO instances file"),
    an_array: ("unreadable file", r'has no list "images"; give a COCO instances file'),
    no_annotations: ("unreadable file", r'has no list "annotations"; give'),
    no_categories: ("no categories", r"categories: the list is empty; every data set needs"),
    no_images: ("no images", r"images: the list is empty; every data set needs"),
    nameless_category: ("malformed record", r'categories\[1\]: "name" is None, not of type str; write'),
    image_without_height: ("malformed record", r'images\[1\]: "height" is None, not of type int; write'),
    flat_image: ("empty image", r"image 12 \(b.png\): its size, 0 x 40, must be positive; correct"),
    duplicate_category: ("duplicate id", r"category 3: the id occurs twice; give"),
    duplicate_image: ("duplicate id", r"image 7: the id occurs twice; give"),
    duplicate_annotation: ("duplicate id", r"annotation 100: the id occurs twice; give"),
    unknown_image: ("unknown image", r"annotation 200: belongs to image 8, which is not in the file; add"),
    unknown_category: ("unknown category", r"annotation 200 of image 7 \(a.png\): is of category 4, .*; add"),
    box_of_three: (
        "malformed record",
        r'annotations\[2\]: "bbox" is \[1, 2, 3\], not four finite numbers; write',
    ),
    box_of_nan: ("malformed record", r'annotations\[2\]: "bbox" is \[1, 2, 3, nan\], not four finite'),
    polygon_of_words: (
        "malformed record",
        r"annotation 200 of image 7 \(a.png\): a polygon is \['a'.*; write",
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
        r"annotation 200 of image 7 \(a.png\): its run lengths do not add up .*; write",
    ),
    mask_without_counts: (
        "broken mask",
        r"annotation 200 of image 7 \(a.png\): its run lengths lack.*; write",
    ),
}


@pytest.mark.parametrize("spoil", OF_FILE, ids=lambda spoil: spoil.__name__)
def test_a_broken_instances_file_is_refused_and_reported(made, spoil):
    kind, message = OF_FILE[spoil]
    made.write()
    spoil(made)
    if spoil not in (no_json, an_array):
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


OF_FOLDER = {
    missing_image: (
        "missing image",
        r"image 7 \(a.png\): .*images/a\.png: no such file; restore it or remove",
    ),
    empty_folder: ("no images in folder", r"images: holds none of the 2 images, not even a\.png; give"),
    no_folder: ("no images in folder", r"elsewhere: no such folder; give"),
}


@pytest.mark.parametrize("spoil", OF_FOLDER, ids=lambda spoil: spoil.__name__)
def test_images_that_are_not_there_are_missed_before_the_first_step(made, spoil):
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


OF_CONTENT = {
    truncated_jpeg: ("broken image", r"a\.jpg: cannot be decoded \(.*truncated.*\); restore"),
    no_picture: ("broken image", r"a\.png: cannot be decoded \(.*\); restore"),
    wrong_size: ("wrong size", r"a\.png: the image is 40 x 30 pixels, its record says 41 x 30 .*; correct"),
    garbled_mask: (
        "broken mask",
        r"instances\.json: annotation 200 of image 7 \(a.png\): its mask cannot.*; write",
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


def no_polygon(made):
    made.annotation(segmentation=[])


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
    no_polygon: ("degenerate polygon", r"annotation 200 of image 7 \(a.png\)", r"it has no polygon; draw"),
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
        assert made.dataset(train).instances.dropped == {kind: 1}
        assert made.target(train)["labels"].tolist() == [2, 1]
        assert len(made.target(train)["masks"]) == 2
    (problem,) = check_data(made.write(), made.folder)
    assert (problem.kind, problem.severity) == (kind, "warning")
    assert re.fullmatch(record, problem.record)
    assert re.search(message, problem.message)


def test_without_masks_a_box_outlives_its_polygon(made):
    polygon_of_two_points(made)
    assert made.target(masks=False)["labels"].tolist() == [2, 1, 2]


def test_the_sound_polygons_of_an_annotation_outlive_the_others(made):
    made.annotation(segmentation=[[1, 1, 2, 2], *SQUARE, [50, 5, 70, 5, 70, 25]])
    assert made.dataset().instances.dropped == {"degenerate polygon": 1, "outside image": 1}
    masks = made.target()["masks"]
    assert masks[2] == masks[0]


def test_what_reaches_beyond_the_image_is_trimmed_and_reported(made):
    made.annotation(bbox=[30, 5, 20, 20], segmentation=[[30, 5, 50, 5, 50, 25, 30, 25]])
    assert rle_api.area(made.target()["masks"][2]) == 10 * 20
    assert made.target(train=True)["masks"][2].sum() == 10 * 20
    assert made.dataset().instances.dropped == {"beyond image": 2}
    assert made.kinds() == {("beyond image", "warning"): 2}


def test_rounding_is_no_fault(made):
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
