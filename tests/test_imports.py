"""What an import loads: the command, the layers and inference import no packages that they do not need."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.ops import clip_boxes_to_image

from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD
from botnet.masks import encode_mask
from tests.support.pasting import paste_mask

pytestmark = pytest.mark.long  # each test starts a process

TRAINING = {
    "lightning", "lightning_fabric", "pytorch_lightning", "torchmetrics", "jsonargparse", "tensorboard",
    "matplotlib.pyplot",
}  # fmt: skip


def modules_loaded_by(code: str) -> set[str]:
    finished = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return set(finished.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import botnet.detection.rcnn, botnet.detection.predict",
        "import botnet.classification.evaluate, botnet.classification.predict",
        "import botnet; botnet.mask_rcnn; botnet.load_resnet",
        "from botnet.detection import load_detector, mask_rcnn",
        "from botnet.classification import create_classifier, load_classifier",
        "import botnet.training.checkpoint_file, botnet.training.loader, botnet.training.run_folder",
    ],
)
def test_inference_does_not_load_the_packages_of_training(code):
    assert not TRAINING & modules_loaded_by(code)


def test_layers_load_neither_timm_nor_torchvision():
    heavy = {"timm", "torchvision", "hotcoco", "matplotlib"}
    assert not (TRAINING | heavy) & modules_loaded_by("import botnet.layers")


def test_the_package_and_the_help_load_nothing_heavy():
    heavy = {"torch", "timm", "numpy", "PIL", "rich", "yaml", "matplotlib"}
    show_help = "try: botnet.cli.main(['--help'])\nexcept SystemExit: pass"
    assert not (TRAINING | heavy) & modules_loaded_by(f"import botnet, botnet.cli\ndir(botnet)\n{show_help}")


IMAGE_PATH = """
import sys
for name in ("torch", "torchvision", "timm", "lightning"):
    sys.modules[name] = None  # importing it fails
import pathlib
import numpy as np
import botnet, botnet.devices, botnet.errors, botnet.folders, botnet.lazy
from botnet.classification.images import EvalTransform as ClassTransform, read_image
from botnet.detection.image_files import image_ids
from botnet.detection.placement import original_boxes
from botnet.detection.transforms import EvalTransform, load_on_canvas
from botnet.images import image_files, load_image
from botnet.masks import compact_masks, to_rles
from botnet.pasting import paste_masks
(path,) = image_files([pathlib.Path(sys.argv[1])]).values()
image = load_image(path)
placement = EvalTransform(64).place((image.height, image.width))
canvas = load_on_canvas(path, placement, 64)
boxes = original_boxes(np.float32([[4, 5, 40, 30], [20, 3, 90, 31]]), placement.scale, placement.size)
grids = np.random.default_rng(0).random((2, 28, 28), np.float32)
rles = to_rles(paste_masks(grids, boxes, *placement.size))
assert to_rles(compact_masks(rles, *placement.size)) == rles
crop = ClassTransform(32, 0.875, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.1))(read_image(path, "image"))
np.savez(sys.argv[2], canvas=canvas, boxes=boxes, crop=crop, counts=[rle["counts"] for rle in rles])
"""


def test_the_way_from_a_file_to_the_canvas_and_back_needs_no_torch(tmp_path):
    path, found = tmp_path / "image.png", tmp_path / "found.npz"
    pixels = np.random.default_rng(1).integers(0, 256, (40, 90, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    finished = subprocess.run(
        [sys.executable, "-c", IMAGE_PATH, str(path), str(found)], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    expected = by_torch(path)
    with np.load(found) as arrays:
        assert set(arrays) == set(expected)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, expected[name])


def by_torch(path):
    """What the program above finds, in the ways of torch, torchvision and timm."""
    shown = Image.open(path)
    resized = torch.tensor(np.asarray(shown.resize((64, round(64 * 40 / 90)), Image.Resampling.BILINEAR)))
    canvas = torch.zeros(64, 64, 3)
    factor, shift = (
        1 / (255 * torch.tensor(IMAGENET_STD)),
        torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD),
    )
    canvas[: len(resized)] = resized * factor - shift
    boxes = torch.tensor([[4.0, 5, 40, 30], [20, 3, 90, 31]]) / torch.tensor([64 / 90, len(resized) / 40] * 2)
    boxes = clip_boxes_to_image(boxes, (40, 90))
    grids = torch.from_numpy(np.random.default_rng(0).random((2, 28, 28), np.float32))
    masks = [paste_mask(grid, box, 40, 90).numpy() for grid, box in zip(grids, boxes, strict=True)]
    crop = create_transform(
        32, crop_pct=0.875, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1)
    )(shown)
    counts = [encode_mask(mask)["counts"] for mask in masks]
    return {"canvas": canvas.permute(2, 0, 1), "boxes": boxes, "crop": crop, "counts": counts}


@pytest.mark.parametrize("package", ["botnet", "botnet.classification", "botnet.detection"])
def test_packages_offer_their_public_names(package):
    code = (
        f"import {package} as package\nfrom {package} import *\n"
        "assert set(package.__all__) <= set(dir(package)) & set(globals())\n"
        "assert not hasattr(package, 'no_such_name')"
    )
    modules_loaded_by(code)
