"""Exported networks against the eager ones, in onnxruntime and in OpenVINO."""

import copy
import json
import math
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import botnet
from botnet.classification import create_classifier
from botnet.cli import main
from botnet.deploy import OnnxModel
from botnet.deploy.graphs import DetectorGraph
from botnet.deploy.operators import pool_boxes, suppress
from botnet.deploy.verify import FULL, HALF, choose_pictures, compare, on_canvas, run_eager
from botnet.detection import RCNN, load_detector
from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD
from botnet.errors import CheckpointError, DataError
from botnet.training.run_folder import RunFolder
from tests.support.deploy import CANVAS, CLASSES, crowd_detector, noise, write_checkpoint

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

SIZE = (CANVAS, CANVAS)
BLANK = np.zeros((CANVAS, CANVAS, 3), np.uint8)


@pytest.fixture(scope="session")
def quiet(exported) -> tuple[Path, object]:
    """The same, for which every box is background; and the eager one."""
    detector, _ = load_detector(exported.with_name("best.ckpt"))
    detector.roi_heads.box_predictor.cls_score.bias.data[0] += 100
    model = onnx.load(exported)
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name.endswith("cls_score.bias")]
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 100
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    path = exported.with_name("quiet.onnx")
    onnx.save(model, path)
    return path, detector


def assert_equal(detector, model: OnnxModel, pictures: list[np.ndarray]) -> list[int]:
    """One for one, in the order of the scores; returns the counts."""
    eager = run_eager(detector, pictures, model.size)
    found = model.run(*on_canvas(pictures, model.size))
    for ours, theirs in zip(eager, found, strict=True):
        assert ours.keys() == theirs.keys()
        assert len(ours["scores"]) == len(theirs["scores"])
        np.testing.assert_allclose(theirs["scores"], ours["scores"], rtol=0, atol=FULL.scores)
        np.testing.assert_allclose(theirs["boxes"], ours["boxes"], rtol=0, atol=FULL.boxes)
        np.testing.assert_array_equal(theirs["labels"], ours["labels"])
        if "masks" in ours:
            np.testing.assert_allclose(theirs["masks"], ours["masks"], rtol=0, atol=1e-4)
    return [len(image["scores"]) for image in found]


@pytest.mark.long
def test_a_crowd_equals_the_eager_one(exported, checkpoint):
    detector, _ = load_detector(checkpoint)
    candidates = copy.deepcopy(detector)
    candidates.roi_heads.detections_per_img, candidates.roi_heads.nms_thresh = 10**6, 1.0
    (all_of_them,) = run_eager(candidates, noise(SIZE), SIZE)
    assert len(all_of_them["scores"]) > 1000
    assert assert_equal(detector, OnnxModel(exported), noise(SIZE)) == [150]


@pytest.mark.long
def test_a_batch_of_padded_and_extreme_aspects_equals_the_eager_one(exported, checkpoint):
    detector, _ = load_detector(checkpoint)
    pictures = noise((CANVAS, 50), (33, CANVAS), (CANVAS, 2), (1, CANVAS), SIZE)
    assert min(assert_equal(detector, OnnxModel(exported), pictures)) > 0


@pytest.mark.long
def test_what_is_outside_of_the_unpadded_region_does_not_matter(exported):
    model = OnnxModel(exported)
    images, valid = on_canvas(noise((40, CANVAS)), SIZE)
    (before,) = model.run(images, valid)
    images[:, :, 40:] = 200
    (after,) = model.run(images, valid)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)
    (whole,) = model.run(images)
    assert not np.array_equal(whole["boxes"], before["boxes"])


@pytest.mark.long
def test_nothing_found(quiet):
    path, detector = quiet
    model = OnnxModel(path)
    assert assert_equal(detector, model, [BLANK]) == [0]
    assert assert_equal(detector, model, [BLANK, *noise(SIZE)]) == [0, 0]
    (found,) = model.run(*on_canvas([BLANK], SIZE))
    assert found["boxes"].shape == (0, 4)
    assert found["masks"].shape == (0, 28, 28)


@pytest.mark.long
def test_openvino_runs_the_same_graph(exported, quiet):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: botnet[openvino]")
    for path, pictures in ((exported, noise(SIZE, (33, CANVAS))), (quiet[0], [BLANK])):
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.compile_model(path, "CPU", settings)
        images, valid = on_canvas(pictures, SIZE)
        values = {
            output.get_any_name(): found
            for output, found in compiled({"images": images, "valid": valid}).items()
        }
        ours = OnnxModel(path).run(images, valid)
        np.testing.assert_array_equal(values["counts"], [len(image["scores"]) for image in ours])
        for name, tolerance in (("boxes", 1e-3), ("scores", 1e-5), ("labels", 0), ("masks", 1e-4)):
            expected = np.concatenate([image[name] for image in ours])
            np.testing.assert_allclose(values[name], expected, rtol=0, atol=tolerance)


@pytest.mark.long
def test_aotinductor_compiles_the_same_graph(tmp_path):
    """As docs/deploy.md has it."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler; AOTInductor needs one")
    graph = DetectorGraph(crowd_detector(), SIZE, IMAGENET_MEAN, IMAGENET_STD).eval()
    example = torch.zeros(2, 3, *SIZE, dtype=torch.uint8), torch.tensor([SIZE, SIZE])
    batch = {0: torch.export.Dim("batch")}
    with torch.no_grad():
        program = torch.export.export(graph, example, dynamic_shapes={"images": batch, "valid": batch})
        path = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(tmp_path / "detector.pt2"),
            inductor_configs={"layout_optimization": False},
        )
    compiled = torch._inductor.aoti_load_package(path)
    for pictures in (noise(SIZE), noise((CANVAS, 50), (33, CANVAS), (CANVAS, 2))):
        given = [torch.from_numpy(values) for values in on_canvas(pictures, SIZE)]
        with torch.no_grad():
            expected = graph(*given)
        assert expected[0].min() > 0
        for found, values in zip(compiled(*given), expected, strict=True):
            np.testing.assert_allclose(found, values, rtol=0, atol=1e-4)


@pytest.mark.long
def test_faster_rcnn_on_a_canvas_that_is_not_square(tmp_path):
    crowd = crowd_detector()
    detector = RCNN(**(crowd.spec | {"masks": False})).eval()
    detector.load_state_dict(crowd.state_dict(), strict=False)
    write_checkpoint(tmp_path / "best.ckpt", detector)
    output, size = tmp_path / "model.onnx", (64, 96)
    call = ["export", str(tmp_path / "best.ckpt"), "--output", str(output), "--size", *map(str, size)]
    assert main(call) == 0
    model = OnnxModel(output)
    assert model.size == size
    (found, *_) = model.run(*on_canvas(noise(size), size))
    assert found.keys() == {"boxes", "scores", "labels"}
    assert min(assert_equal(detector, model, noise(size, (64, 40), (20, 96)))) > 0
    # An image of 200 x 100 px fills the canvas' width and 48 of its rows.
    pictures = noise((100, 200))
    answer = botnet.load(output).predict(pictures[0], threshold=0.2)
    assert len(answer) > 0
    assert answer.mask is None
    assert (answer.xyxy[:, 2:].max(0) > [190, 90]).all()
    assert (answer.xyxy <= [200, 100, 200, 100]).all()


@pytest.mark.long
def test_half_precision_is_near_the_whole_one(exported, checkpoint, tmp_path):
    output = tmp_path / "half.onnx"
    assert main(["export", str(checkpoint), "--output", str(output), "--half"]) == 0
    kinds = Counter()
    for tensor in onnx.load(output).graph.initializer:
        kinds[tensor.data_type] += math.prod(tensor.dims)
    assert kinds[onnx.TensorProto.FLOAT16] > 20 * kinds[onnx.TensorProto.FLOAT]  # all but the anchors
    assert output.stat().st_size < 0.6 * exported.stat().st_size
    half, whole = OnnxModel(output), OnnxModel(exported)
    images, valid = on_canvas(noise(SIZE, (40, CANVAS)), SIZE)
    for found, expected in zip(half.run(images, valid), whole.run(images, valid), strict=True):
        assert {name: values.dtype for name, values in found.items()} == {
            name: values.dtype for name, values in expected.items()
        }
        compare([expected], [found], HALF, 150)
        assert not np.array_equal(found["scores"], expected["scores"])


@pytest.mark.long
def test_the_file_says_what_it_is(exported):
    model = OnnxModel(exported)
    assert (model.task, model.size, model.fixed_size) == ("detector", SIZE, True)
    assert model.class_names == [f"class {i}" for i in range(CLASSES)]
    assert model.category_ids == list(range(0, 3 * CLASSES, 3))
    with pytest.raises(ValueError, match=r"uint8 \(B, 3, 96, 96\), got float32"):
        model.run(np.zeros((1, 3, *SIZE), np.float32))
    with pytest.raises(ValueError, match="valid"):
        model.run(np.zeros((1, 3, *SIZE), np.uint8), [(97, 10)])


@pytest.mark.long
def test_files_that_cannot_be_run_are_named(exported, tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "cut.onnx").write_bytes(exported.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut\.onnx cannot be run .*write it again"):
        OnnxModel(tmp_path / "cut.onnx")
    model = onnx.load(exported)
    for entry in model.metadata_props:
        if entry.key == "botnet_format":
            entry.value = "99"
    onnx.save(model, tmp_path / "newer.onnx")
    with pytest.raises(CheckpointError, match=r"in format 99; .* upgrade"):
        OnnxModel(tmp_path / "newer.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(CheckpointError, match="not written by botnet export"):
        OnnxModel(tmp_path / "theirs.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}"], "holds neither a run"),
        (["{run}/none.ckpt"], "no such checkpoint"),
        (["{run}", "--output", "{run}/there.onnx"], "exists; name another"),
        (["{run}", "--output", "{run}/no/model.onnx"], "in a folder that exists"),
        (["{run}", "--size", "100", "96"], "multiples of the stride, 32"),
        (["{run}", "--images", "{run}/none"], "no such folder"),
    ],
)
def test_a_request_that_cannot_be_met_writes_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").touch()
    assert main(["export", *(argument.format(run=tmp_path) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]


def test_detections_that_differ_are_refused():
    rng = np.random.default_rng(0)
    found = [
        {
            "boxes": rng.uniform(0, 90, (20, 4)).astype(np.float32),
            "scores": np.linspace(0.9, 0.1, 20, dtype=np.float32),
            "labels": rng.integers(1, 4, 20),
        }
    ]
    compare(found, found, FULL, 100)
    swapped = [{name: values[::-1] for name, values in found[0].items()}]
    compare(found, swapped, FULL, 100)  # equal scores may change places
    for name, change in (("boxes", 2e-3), ("scores", 2e-5), ("labels", 1)):
        changed = copy.deepcopy(found)
        changed[0][name][3] += change
        with pytest.raises(CheckpointError, match="2 of 40 detections have no partner"):
            compare(found, changed, FULL, 100)
    fewer = [{name: values[:-1] for name, values in found[0].items()}]
    with pytest.raises(CheckpointError, match="1 of 39"):
        compare(found, fewer, FULL, 100)


def test_pictures_of_the_validation_set_are_compared(tmp_path):
    """However the run's configuration names it; without them, synthetic ones."""
    for folder in ("train", "val"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        (tmp_path / "set" / f"instances_{folder}.json").write_text("{}")
    for number in range(20):
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / "val" / f"{number:02}.png")
    run = RunFolder(tmp_path)
    for data in (
        {"class_path": "x", "init_args": {"root": str(tmp_path / "set"), "val_images": None}},
        {"init_args": {"val_instances": "x.json", "val_images": str(tmp_path / "set" / "val")}},
        {"val": str(tmp_path / "set" / "val")},
    ):
        run.config.write_text(json.dumps({"data": data}))
        paths, words = choose_pictures(run, None)
        assert [path.name for path in paths] == [f"{number:02}.png" for number in range(0, 16, 2)]
        assert words == "pictures of the run's validation set"
    for data in ({"root": str(tmp_path / "gone")}, {"root": None}, {}, None):
        run.config.write_text(json.dumps({"data": data}))
        assert choose_pictures(run, None)[0] == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no image"):
        choose_pictures(run, tmp_path / "empty")
    run.config.write_text(json.dumps({"data": {"val": str(tmp_path / "empty")}}))
    assert choose_pictures(run, None)[1].startswith("synthetic pictures")


def test_suppression_in_loops():
    generator = torch.Generator().manual_seed(0)
    corner = 40 * torch.rand(3, 30, 2, generator=generator)
    boxes = torch.cat([corner, corner + 5 + 20 * torch.rand(3, 30, 2, generator=generator)], 2)
    scores = torch.rand(3, 30, generator=generator) - 0.2
    kept = suppress(boxes, scores, 0.3, 8)
    for row in range(3):
        expected: list[int] = []
        for i in scores[row].argsort(descending=True).tolist():
            overlaps = [iou(boxes[row, i].tolist(), boxes[row, j].tolist()) > 0.3 for j in expected]
            if scores[row, i] >= 0 and not any(overlaps) and len(expected) < 8:
                expected.append(i)
        assert sorted(expected) == torch.where(kept[row] >= 0)[0].tolist()
        assert torch.equal(kept[row, expected], scores[row, expected])


def iou(a: list[float], b: list[float]) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_pooling_names_the_roi_of_each_row():
    features = [torch.full((2, 1, 8, 8), 10.0), torch.full((2, 1, 4, 4), 20.0)]
    rois = torch.tensor([[0, 0, 0, 8, 8], [1, 0, 0, 9, 9], [0, 1, 1, 7, 7.0]])
    pooled, order = pool_boxes(features, rois, torch.tensor([1, 0, 1]), [0.5, 0.25], 2)
    assert order.tolist() == [1, 0, 2]
    assert pooled[:, 0, 0, 0].tolist() == [10, 20, 20]


@pytest.mark.long
def test_a_classifier_takes_any_batch_and_size(tmp_path):
    torch.manual_seed(0)
    spec = {"name": "botnet_tiny", "num_classes": 3, "image_size": 96}
    network = create_classifier(**spec).eval()
    about = {
        "classifier": spec,
        "class_names": ["a", "b", "c"],
        "evaluation": {
            "image_size": 96,
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.3, 0.4),
        },
    }
    weights = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"botnet": about, "state_dict": weights}, tmp_path / "best.ckpt")
    output = tmp_path / "model.onnx"
    assert main(["export", str(tmp_path / "best.ckpt"), "--output", str(output)]) == 0
    model = OnnxModel(output)
    assert (model.task, model.size, model.fixed_size) == ("classifier", (96, 96), False)
    assert model.class_names == ["a", "b", "c"]
    assert model.preparation == {"crop_pct": 0.9, "interpolation": "bicubic"}
    mean, std = (torch.tensor(about["evaluation"][key])[:, None, None] for key in ("mean", "std"))
    for batch, size in ((1, (96, 96)), (3, (128, 160)), (2, (224, 131))):
        images = np.random.default_rng(0).integers(0, 256, (batch, 3, *size), dtype=np.uint8)
        with torch.no_grad():
            expected = network((torch.from_numpy(images) / 255 - mean) / std).softmax(-1)
        found = np.stack([image["scores"] for image in model.run(images)])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
