"""What an import loads: the command, the layers and inference import no packages that they do not need."""

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("package", ["botnet", "botnet.classification", "botnet.detection"])
def test_packages_offer_their_public_names(package):
    code = (
        f"import {package} as package\nfrom {package} import *\n"
        "assert set(package.__all__) <= set(dir(package)) & set(globals())\n"
        "assert not hasattr(package, 'no_such_name')"
    )
    modules_loaded_by(code)
