"""A trained detector in Python: any form of image, order, batches, names and ids."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image, ImageOps
from supervision.detection.compact_mask import CompactMask
from torchvision.transforms.v2.functional import pil_to_tensor

import botnet
from botnet.detection.detector import Detector, TorchDetector
from botnet.errors import ConfigError, DataError
from botnet.masks import decode_mask
from tests.support.classification import picture
from tests.support.detector import small_detector

NAMES, IDS = ["zebra", "ant", "bee"], [7, 0, 90]  # neither in order nor without gaps


@pytest.fixture(scope="module")
def detector() -> TorchDetector:
    """An untrained detector that finds a lot in everything."""
    return TorchDetector(small_detector(score_threshold=0.0).eval(), NAMES, IDS, 96)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Images of several sizes and aspects."""
    folder = tmp_path_factory.mktemp("images")
    for number, size in enumerate([(60, 40), (40, 90), (300, 20), (96, 96), (33, 35)]):
        picture(number, size).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def same(one: sv.Detections, other: sv.Detections) -> bool:
    """Whether two answers are equal, up to rounding by the batch."""
    return (
        np.allclose(one.xyxy, other.xyxy, atol=1e-3)
        and np.allclose(one.confidence, other.confidence, atol=1e-5)
        and np.array_equal(one.class_id, other.class_id)
    )


def test_what_is_found_in_an_image(detector, files):
    found = detector.predict(files[0], threshold=0.0)
    assert isinstance(found, sv.Detections)
    assert len(found) > 3
    assert found.xyxy.dtype == np.float32
    assert (found.xyxy >= 0).all()
    assert (found.xyxy <= [60, 40, 60, 40]).all()
    assert (np.diff(found.confidence) <= 0).all()
    assert isinstance(found.mask, CompactMask)
    assert found.mask.shape[1:] == (40, 60)


def test_any_form_of_an_image_gives_the_same_answer(detector, files):
    image = Image.open(files[0])
    expected = detector.predict(files[0])
    tensor = pil_to_tensor(image)
    for form in (str(files[0]), image, np.asarray(image), tensor, tensor / 255, tensor.double() / 255):
        found = detector.predict(form)
        assert np.array_equal(found.xyxy, expected.xyxy), type(form)
        assert np.array_equal(found.confidence, expected.confidence)
    white = np.full((40, 60, 3), 255, np.uint8)  # bfloat16 has no other grey exactly
    assert same(detector.predict(torch.ones(3, 40, 60, dtype=torch.bfloat16)), detector.predict(white))


def test_an_image_in_memory_is_turned_as_its_file_is(detector, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1, (80, 40)).save(tmp_path / "turned.png", exif=exif)
    from_file = detector.predict(tmp_path / "turned.png")
    assert from_file.mask.shape[1:] == (80, 40)
    assert same(detector.predict(Image.open(tmp_path / "turned.png")), from_file)
    assert same(detector.predict(ImageOps.exif_transpose(Image.open(tmp_path / "turned.png"))), from_file)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_several_images_keep_their_order_in_any_batch(batch_size, detector, files):
    found = detector.predict(files, batch_size=batch_size)
    assert isinstance(found, list)
    assert len(found) == len(files)
    assert all(same(one, detector.predict(path)) for one, path in zip(found, files, strict=True))
    assert [one.mask.shape[1:] for one in found] == [(40, 60), (90, 40), (20, 300), (96, 96), (35, 33)]


def test_a_stream_takes_images_as_it_is_read(detector, files):
    taken = []

    def endless():
        while True:
            taken.append(None)
            yield files[len(taken) % 2]

    stream = detector.predict(endless(), stream=True, batch_size=2)
    assert not taken
    next(stream), next(stream)
    assert len(taken) == 2
    next(stream)
    assert len(taken) == 4


def test_no_images_give_no_answers(detector):
    assert detector.predict([]) == []
    assert list(detector.predict(iter([]), stream=True)) == []


def test_a_threshold_leaves_out_what_is_below(detector, files):
    everything = detector.predict(files[0], threshold=0.0)
    middle = float(np.median(everything.confidence))
    kept = detector.predict(files[0], threshold=middle)
    assert 0 < len(kept) < len(everything)
    assert np.array_equal(kept.confidence, everything.confidence[everything.confidence >= middle])
    assert len(detector.predict(files[0], threshold=1.0)) == 0


def test_names_and_ids_are_those_of_the_class(detector, files):
    found = detector.predict(files[1], threshold=0.0)
    assert set(found.class_id.tolist()) <= {0, 1, 2}
    assert len(set(found.class_id.tolist())) > 1
    assert found["class_name"].tolist() == [NAMES[index] for index in found.class_id]
    assert found["category_id"].tolist() == [IDS[index] for index in found.class_id]


def test_coco_records_are_those_of_what_is_kept(detector, files):
    found = detector.predict(files[0], threshold=0.0)
    kept = found[found.class_id == 1]
    records = botnet.to_coco(kept, 5)
    assert len(records) == len(kept) > 0
    assert {(record["image_id"], record["category_id"]) for record in records} == {(5, 0)}
    for record, box, mask in zip(records, kept.xyxy, kept.mask.to_dense(), strict=True):
        assert record["bbox"] == pytest.approx([box[0], box[1], box[2] - box[0], box[3] - box[1]])
        assert np.array_equal(decode_mask(record["segmentation"], 40, 60), mask)
    dense = sv.Detections(
        kept.xyxy,
        kept.mask.to_dense(),
        kept.confidence,
        kept.class_id,
        data={"category_id": kept["category_id"]},
    )
    assert botnet.to_coco(dense, 5) == records
    with pytest.raises(ValueError, match="category_id"):
        botnet.to_coco(sv.Detections(kept.xyxy, confidence=kept.confidence), 5)


def test_threads_share_a_detector(detector, files):
    expected = [detector.predict(path) for path in files]
    start = threading.Barrier(4)

    def work(_):
        start.wait()
        return [detector.predict(path) for path in files]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(4)):
            assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_nothing_is_printed_or_written(detector, files, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    detector.predict(files, batch_size=2)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (np.zeros((5, 5), np.uint8), r"shape \(5, 5\)"),
        (np.zeros((3, 5, 5), np.uint8), r"shape \(3, 5, 5\) and type uint8"),
        (np.zeros((5, 5, 3), np.float32), "type float32"),
        (torch.zeros(1, 3, 5, 5), r"shape \(1, 3, 5, 5\)"),
        (torch.zeros(5, 5, 3), r"shape \(5, 5, 3\)"),
        (torch.full((3, 5, 5), 2.0), r"outside of \[0, 1\]"),
        (torch.full((3, 5, 5), torch.nan), r"outside of \[0, 1\]"),
        (torch.zeros(3, 5, 5, dtype=torch.int64), "type torch.int64"),
        (torch.zeros(()), r"shape \(\)"),
        (torch.zeros(3, 0, 5), r"shape \(3, 0, 5\)"),
        (Image.new("RGB", (0, 5)), "an image of 0 x 5 pixels"),
        (Image.new("F", (5, 5)), "32-bit"),
        (7, "int is no image; give a path"),
        (None, "NoneType is no image"),
        (b"photo.jpg", "bytes is no image"),
    ],
)
def test_what_is_no_image_is_refused(image, message, detector, files):
    with pytest.raises(DataError, match=f"^(?!image [0-9]).*{message}"):
        detector.predict(image)
    with pytest.raises(DataError, match=f"image 1: .*{message}"):
        detector.predict([files[0], image], batch_size=2)


def test_a_broken_file_in_a_list_is_named(detector, files, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"broken\.jpg: cannot be decoded"):
        detector.predict([*files, tmp_path / "broken.jpg"])
    with pytest.raises(DataError, match=r"broken\.jpg: cannot be decoded"):
        list(detector.predict([*files, tmp_path / "broken.jpg"], stream=True, batch_size=2))
    with pytest.raises(DataError, match=r"gone\.jpg: no such image"):
        detector.predict([tmp_path / "gone.jpg"])
    with pytest.raises(DataError, match="is a folder; give the images in it"):
        detector.predict(tmp_path)


@pytest.mark.parametrize("file", [b"", b"P6\n0 0\n255\n", b"GIF89a\0\0\0\0\0\0\0;"])
def test_a_file_of_no_pixels_is_named(file, detector, tmp_path):
    (tmp_path / "none.png").write_bytes(file)
    with pytest.raises(DataError, match=r"none\.png: cannot be decoded"):
        detector.predict(tmp_path / "none.png")


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 1.1},
        {"threshold": -0.1},
        {"threshold": float("nan")},
        {"batch_size": 0},
        {"tile": 0},
        {"tile": 100, "overlap": 100},
        {"tile": 100, "overlap": -1},
    ],
)
def test_options_out_of_range_are_refused(options, detector, files):
    with pytest.raises(ConfigError, match="give "):
        detector.predict([files[0]], **options)


def test_supervisions_tools_take_the_answers(detector, files, tmp_path):
    found = detector.predict(files[3], threshold=0.0)[:5]
    scene = np.asarray(Image.open(files[3]))[:, :, ::-1].copy()  # its arrays are BGR
    for annotator in (sv.BoxAnnotator(), sv.MaskAnnotator(), sv.LabelAnnotator()):
        assert annotator.annotate(scene.copy(), found).shape == scene.shape
    with sv.CSVSink(str(tmp_path / "found.csv")) as sink:
        sink.append(found, {})
    assert (tmp_path / "found.csv").read_text().count(NAMES[int(found.class_id[0])]) >= 1
    slicer = sv.InferenceSlicer(lambda tile: detector.predict(tile), slice_wh=64, overlap_wh=16)
    assert isinstance(slicer(np.asarray(Image.open(files[3]))), sv.Detections)


def test_drawing_an_answer(detector, files):
    picture = botnet.draw(files[0], detector.predict(files[0]))
    assert max(picture.size) == 480


class FindsBright(Detector):
    """Finds the bright rectangle of a canvas of 128 pixels, if there is one."""

    def run(self, prepared):
        assert all(image.placement.size <= (128, 128) for image in prepared)  # no more than a tile at once
        return [self._bright(image.pixels[..., 0] > 128) for image in prepared]

    def _bright(self, bright):
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        count = int(bright.any())
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if count else []
        return {
            "boxes": np.array(box, np.float32).reshape(-1, 4),
            "scores": np.full(count, 0.9, np.float32),
            "labels": np.full(count, 2),
            "masks": np.ones((count, 1, 28, 28), np.float32),
        }


def test_a_video_is_processed_frame_by_frame(tmp_path):
    """supervision's frames are BGR: a red rectangle is found once they are turned to RGB, and only then."""
    frame = np.zeros((64, 128, 3), np.uint8)
    frame[20:50, 30:90, 2] = 255
    source, target = str(tmp_path / "source.mp4"), str(tmp_path / "target.mp4")
    with sv.VideoSink(source, sv.VideoInfo(width=128, height=64, fps=5, total_frames=3)) as sink:
        for _ in range(3):
            sink.write_frame(frame)
    detector, seen = FindsBright(NAMES, IDS, (128, 128)), []

    def annotate(frame: np.ndarray, index: int) -> np.ndarray:
        assert len(detector.predict(frame)) == 0
        found = detector.predict(frame[:, :, ::-1])
        seen.append((index, found.xyxy.tolist()))
        return sv.BoxAnnotator(thickness=1).annotate(frame.copy(), found)

    sv.process_video(source, target, annotate)
    assert [index for index, _ in seen] == [0, 1, 2]
    for _, boxes in seen:
        assert np.allclose(boxes, [[30, 20, 90, 50]], atol=2)  # the video is compressed
    assert len(list(sv.get_video_frames_generator(target))) == 3


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_object_cut_by_tiles_is_one(batch_size):
    image = np.zeros((200, 300, 3), np.uint8)
    image[90:130, 80:220] = 255  # in four tiles or more
    detector = FindsBright(NAMES, IDS, (128, 128))
    (found,) = detector.predict([image], tile=128, overlap=64, batch_size=batch_size)
    assert found.xyxy.tolist() == [[80, 90, 220, 130]]
    assert found["class_name"].tolist() == ["ant"]
    assert [record["category_id"] for record in botnet.to_coco(found, 1)] == [0]
    masks = found.mask.to_dense() if isinstance(found.mask, CompactMask) else found.mask
    assert np.array_equal(masks[0], image[..., 0] > 128)
    assert len(detector.predict(np.zeros_like(image), tile=128)) == 0
