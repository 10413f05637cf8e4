"""Answers of exported networks: those of the run, and without PyTorch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import botnet
from botnet.cli import main
from botnet.errors import CheckpointError
from tests.support.classification import picture

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, size in enumerate([(60, 40), (40, 90), (300, 20)]):
        picture(number, size).save(folder / f"{number}.png")
    return folder


def test_an_exported_detector_answers_as_its_checkpoint(exported, images):
    eager, model = botnet.load(exported.with_name("best.ckpt"), "cpu"), botnet.load(exported)
    assert model.class_names == eager.class_names
    assert model.category_ids == eager.category_ids
    paths = sorted(images.iterdir())
    for path, found in zip(paths, model.predict(paths, threshold=0.3, batch_size=2), strict=True):
        expected = eager.predict(path, threshold=0.3)
        assert len(found) == len(expected)
        assert np.allclose(found.confidence, expected.confidence, atol=1e-5)
        assert np.allclose(found.xyxy, expected.xyxy, atol=0.05)
        assert found["class_name"].tolist() == expected["class_name"].tolist()
        assert found.mask.shape == expected.mask.shape


def test_the_command_predicts_with_an_exported_detector(exported, images, tmp_path, capsys):
    call = ["predict", str(exported), str(images), "--output"]
    assert main([*call, str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    assert (tmp_path / "out" / "results_segm.json").is_file()
    assert main([*call, str(tmp_path / "other"), "--attention"]) == 2
    assert "an exported model does not show its attention" in capsys.readouterr().err


def test_without_pytorch(exported, images, tmp_path):
    """The import of torch, torchvision, timm and Lightning is blocked."""
    script = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'lightning'): sys.modules[name] = None\n"
        "import botnet\n"
        "from botnet.cli import main\n"
        "model = botnet.load(sys.argv[1])\n"
        "found = model.predict(sys.argv[2] + '/0.png', threshold=0.3)\n"
        "print(len(found), found.mask.shape)\n"
        "picture = botnet.draw(sys.argv[2] + '/0.png', found)\n"
        "print(len(botnet.to_coco(found, 1)))\n"
        "sys.exit(main(['predict', sys.argv[1], sys.argv[2], '--output', sys.argv[3]]))\n"
    )
    call = [sys.executable, "-c", script, str(exported), str(images), str(tmp_path / "out")]
    finished = subprocess.run(call, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    found = botnet.load(exported).predict(images / "0.png", threshold=0.3)
    assert finished.stdout.splitlines()[:2] == [f"{len(found)} {found.mask.shape}", str(len(found))]
    assert (tmp_path / "out" / "0.png").is_file()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"theirs\.onnx was not written by botnet export"),
        ({"botnet_format": "?"}, r"theirs\.onnx: its metadata are broken"),
        ({"botnet_format": "null"}, r"theirs\.onnx: its metadata are broken"),
        (
            {"botnet_format": "1", "botnet_task": '"detector"'},
            r"theirs\.onnx: its metadata lack ",
        ),
        (
            {"botnet_format": "99", "botnet_version": '"9.0"'},
            r"written by botnet 9\.0 in format 99; .* upgrade",
        ),
    ],
)
def test_the_graph_of_somebody_else_is_refused(metadata, message, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "theirs", values[:1], values[1:])
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    helper.set_model_props(model, metadata)
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(CheckpointError, match=message):
        botnet.load(tmp_path / "theirs.onnx")
    picture(0, (60, 40)).save(tmp_path / "0.png")
    call = ["predict", str(tmp_path / "theirs.onnx"), str(tmp_path / "0.png")]
    assert main([*call, "--output", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_is_no_exported_model_is_refused(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"x\.onnx cannot be run"):
        botnet.load(tmp_path / "x.onnx")
    with pytest.raises(CheckpointError, match=r"gone\.onnx: no such file"):
        botnet.load(tmp_path / "gone.onnx")
