"""Checkpoints, published folders and ONNX files that are nearly right: read, or refused as what they are.

Nothing in them is executed, and nothing is written.
"""

import copy
import io
import json
import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

import botnet
from botnet.classification import create_classifier
from botnet.errors import CheckpointError
from tests.support.detector import small_detector
from tests.support.fuzz import Trap, cases, nearly, nothing_written

SMALL = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=4)
ANYTHING = st.recursive(
    SMALL, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def detector():
    network = small_detector()
    about = {"format": 1, "version": "0.2.0", "class_names": ["a", "b", "c"]}
    about |= {"detector": network.spec, "category_ids": [1, 2, 5], "canvas": 96}
    return about, {f"detector.{name}": tensor for name, tensor in network.state_dict().items()}


def classifier():
    spec = {"name": "botnet_s1_tiny", "num_classes": 3, "image_size": 64}
    evaluation = {"image_size": 64, "crop_pct": 0.9, "interpolation": "bicubic"}
    evaluation |= {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    about = {"format": 1, "version": "0.2.0", "class_names": ["a", "b", "c"]}
    about |= {"classifier": spec, "evaluation": evaluation}
    weights = create_classifier(**spec).state_dict()
    return about, {f"model.{name}": tensor for name, tensor in weights.items()}


SOUND = {"detector": detector(), "classifier": classifier()}


def stored(contents):
    file = io.BytesIO()
    torch.save(contents, file)
    return file.getvalue()


def places(node, path=()):
    """The ways to all values of dictionaries and lists."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def descriptions(draw):
    """What a model says of itself, with a value replaced or lost, and its tensors, perhaps without one."""
    about, tensors = SOUND[draw(st.sampled_from(sorted(SOUND)))]
    about, tensors = copy.deepcopy(about), dict(tensors)
    *way, key = draw(st.sampled_from(list(places(about))))
    node = about
    for step in way:
        node = node[step]
    match draw(st.integers(0, 5)):
        case 0:
            del node[key]
        case 1:
            name = draw(st.sampled_from(sorted(tensors)))
            tensors[name] = draw(st.sampled_from([torch.zeros(0), torch.zeros(2, 3, dtype=torch.int8)]))
        case 2:
            del tensors[draw(st.sampled_from(sorted(tensors)))]
        case _:
            node[key] = draw(ANYTHING)
    return about, tensors


def open_in(folder, source):
    """The model is opened, or refused; where it is opened, it answers."""
    with nothing_written(folder):
        try:
            model = botnet.load(source, "cpu")
        except CheckpointError as error:
            assert str(folder) in str(error) or source.name in str(error)
            return
        assert model.predict(np.zeros((40, 50, 3), np.uint8)) is not None


@cases(15)
@given(description=descriptions())
def test_checkpoints_that_describe_their_network_wrongly(description):
    about, tensors = description
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "best.ckpt"
        torch.save({"botnet": about, "state_dict": tensors}, file)
        open_in(Path(scratch), file)


@cases(10)
@given(description=descriptions(), data=st.data())
def test_published_folders_that_describe_their_network_wrongly(description, data):
    about, tensors = description
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "published"
        folder.mkdir()
        try:
            config = json.dumps({"botnet": about}).encode()
        except (TypeError, ValueError):
            config = b"{}"
        weights = save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})
        (folder / "config.json").write_bytes(data.draw(st.just(config) | nearly(config)))
        (folder / "model.safetensors").write_bytes(data.draw(st.just(weights) | nearly(weights[:4000])))
        open_in(Path(scratch), folder)


@cases(10)
@given(data=st.data())
def test_checkpoints_with_broken_bytes(data):
    whole = stored({"botnet": SOUND["detector"][0], "state_dict": {"detector.x": torch.ones(2)}})
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "last.ckpt"
        file.write_bytes(data.draw(nearly(whole)))
        open_in(Path(scratch), file)


def zipped(pickled, *others):
    """A file of torch's with this pickle, and members of other names."""
    file = io.BytesIO(stored({"botnet": SOUND["detector"][0]}))
    made = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
        for name in others:
            new.writestr(name, b"written by a file name")
    return made.getvalue()


@pytest.mark.parametrize("kind", ["old format", "zip", "names", "within"])
def test_code_in_a_checkpoint_is_not_executed(kind, tmp_path):
    (tmp_path / "here").mkdir()
    trap, file = Trap(tmp_path / "sprung"), tmp_path / "here" / "best.ckpt"
    if kind == "old format":
        torch.save({"botnet": trap}, file, _use_new_zipfile_serialization=False)
    elif kind == "zip":
        file.write_bytes(zipped(pickle.dumps(trap)))
    elif kind == "names":
        pickled = pickle.dumps({"botnet": {"detector": {}}})
        file.write_bytes(zipped(pickled, "../sprung", str(tmp_path / "sprung"), "archive/../../sprung"))
    else:
        about, tensors = copy.deepcopy(SOUND["detector"])
        about["detector"]["backbone"] = trap
        torch.save({"botnet": about, "state_dict": tensors}, file)
    with nothing_written(tmp_path / "here"), pytest.raises(CheckpointError, match=r"best\.ckpt"):
        botnet.load(file, "cpu")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("kind", "argument", "value"),
    [
        ("classifier", "checkpoint_path", "evil.pth"),
        ("classifier", "pretrained", True),
        ("classifier", "pretrained_cfg", {"file": "evil.pth"}),
        ("detector", "weights", "evil.pth"),
    ],
)
def test_a_checkpoint_names_no_other_files(kind, argument, value, tmp_path):
    about, tensors = copy.deepcopy(SOUND[kind])
    about[kind][argument] = value
    with open(tmp_path / "evil.pth", "wb") as evil:
        pickle.dump(Trap(tmp_path / "sprung"), evil)
    torch.save({"botnet": about, "state_dict": tensors}, tmp_path / "best.ckpt")
    with nothing_written(tmp_path), pytest.raises(CheckpointError, match=f"has the argument '{argument}'"):
        botnet.load(tmp_path / "best.ckpt", "cpu")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("nms_threshold", None), ("bn_momentum", [0.1]), ("rpn_pre_nms_eval", None), ("canvas", "96")],
)
def test_a_detector_of_other_types_is_refused_as_it_is_loaded(argument, value, tmp_path):
    about, tensors = copy.deepcopy(SOUND["detector"])
    about["detector"][argument] = value
    torch.save({"botnet": about, "state_dict": tensors}, tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match=rf"best\.ckpt.*{argument}: .* is not allowed"):
        botnet.load(tmp_path / "best.ckpt", "cpu")


# ---- ONNX


def graph(external=None, **changes):
    """A classifier of three classes that answers with the first pixels, and what it says of itself."""
    onnx = pytest.importorskip("onnx")
    about = {
        "task": "classifier", "class_names": ["a", "b", "c"], "category_ids": [], "size": [8, 8],
        "fixed_size": True, "preparation": {"crop_pct": 1.0, "interpolation": "bicubic"},
        "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "format": 1, "version": "0.2.0",
    } | changes  # fmt: skip
    scale = onnx.numpy_helper.from_array(np.ones((1, 1), np.float32), "scale")
    if external:
        scale.ClearField("raw_data")
        scale.data_location = onnx.TensorProto.EXTERNAL
        scale.external_data.add(key="location", value=external)
    helper = onnx.helper
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["scores"]),
    ]
    images = helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["b", 3, 8, 8])
    scores = helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["b", 3])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [images], [scores], [scale]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    for key, value in about.items():
        model.metadata_props.add(
            key=f"botnet_{key}",
            value=value if isinstance(value, str) and value[:1] == "@" else json.dumps(value),
        )
    return model.SerializeToString()


KEYS = (
    "task",
    "class_names",
    "category_ids",
    "size",
    "fixed_size",
    "preparation",
    "mean",
    "std",
    "format",
    "version",
)


@cases(10)
@given(key=st.sampled_from(KEYS), value=ANYTHING | st.just("@not JSON"), data=st.data())
def test_onnx_files_that_are_nearly_right(key, value, data):
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        whole = graph(**{key: value})
        file.write_bytes(data.draw(st.just(whole) | nearly(graph())))
        open_in(Path(scratch), file)


def test_an_onnx_file_whose_metadata_are_not_text_is_refused(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(graph().replace(b"0.2.0", b"\x80.2.0"))
    with pytest.raises(CheckpointError, match=r"model\.onnx: its metadata are broken"):
        botnet.load(file)


def test_an_onnx_file_reads_no_data_outside_of_its_folder(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "secret").write_bytes(np.ones(1, np.float32).tobytes())
    (here / "beside").write_bytes(np.ones(1, np.float32).tobytes())
    for location in ("../secret", str(tmp_path / "secret")):
        (here / "model.onnx").write_bytes(graph(external=location))
        with nothing_written(tmp_path), pytest.raises(CheckpointError, match=r"model\.onnx"):
            botnet.load(here / "model.onnx")
