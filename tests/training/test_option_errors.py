"""A wrong option is answered by one line and exit status 2."""

import pytest
import yaml

from botnet.cli import main
from botnet.training.option_errors import explain
from botnet.training.recipes import RECIPES


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["--model.learning_rat", "0.01"],
            "--model.learning_rat: no such option; did you mean learning_rate, warmup_learning_rate, "
            "decay_at? (botnet fit --help, --data.help, --model.help list all)",
        ),
        (
            ["--model.detector.roi_sampl", "3"],
            "--model.detector.roi_sampl: no such option; did you mean roi_samples, rpn_samples? "
            "(botnet fit --help, --data.help, --model.help list all)",
        ),
        (
            ["--trainer.max_epochs", "abc"],
            "--trainer.max_epochs: 'abc' is not allowed; give an integer or null",
        ),
        (
            ["--data.batch_size", "auro"],
            "--data.batch_size: 'auro' is not allowed; give an integer or auto; did you mean auto?",
        ),
        (["--data.canvas", "x"], "--data.canvas: 'x' is not allowed; give an integer"),
        (["--global_batch", "x"], "--global_batch: 'x' is not allowed; give an integer or null"),
        (
            ["--batch_rule", "linar"],
            "--batch_rule: 'linar' is not allowed; give accumulate or linear; did you mean linear?",
        ),
        (["--data.jitter", "x"], "--data.jitter: 'x' is not allowed; give a list"),
        (
            ["--data", "botnet.detection.Nope"],
            "--data: 'botnet.detection.Nope' is not a class that can be imported; "
            "give its path, package.Class",
        ),
        (
            ["--datas.canvas", "3"],
            "--datas.canvas: no such option; did you mean data? "
            "(botnet fit --help, --data.help, --model.help list all)",
        ),
        (["--model.detector.backbone"], "argument --model: expected one argument"),
    ],
)
def test_the_command_answers_in_one_line(given, expected, tmp_path, capsys):
    run = ["--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", "recipes/quickstart.yaml", *run, *given]) == 2
    assert capsys.readouterr().err == f"botnet: {expected}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            {"trainer": {"max_epoch": 3}},
            "--trainer.max_epoch: no such option; did you mean max_epochs, min_epochs, max_steps? "
            "(botnet fit --help, --data.help, --model.help list all)",
        ),
        (
            {"data": {"init_args": {"canvas": "wide"}}},
            "--data.canvas: 'wide' is not allowed; give an integer",
        ),
    ],
)
def test_so_it_does_for_a_recipe_and_names_it(lines, expected, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"base": str(RECIPES / "quickstart.yaml"), **lines}))
    assert main(["fit", "--config", str(recipe)]) == 2
    assert capsys.readouterr().err == f"botnet: {recipe}: {expected}\n"


def test_a_base_is_named_with_the_recipe_that_builds_on_it(tmp_path, capsys):
    base, top = tmp_path / "base.yaml", tmp_path / "top.yaml"
    base.write_text(
        yaml.safe_dump({"base": str(RECIPES / "quickstart.yaml"), "data": {"init_args": {"flip": 2}}})
    )
    top.write_text(yaml.safe_dump({"base": "base.yaml", "trainer": {"max_epochs": 1}}))
    expected = "--data.flip: 2 is not allowed; give a number from 0 to 1\n"
    assert main(["fit", "--config", str(top)]) == 2
    assert capsys.readouterr().err == f"botnet: {base}, a base of {top}: {expected}"
    assert main(["fit", "--config", str(top), "--data.flip", "2"]) == 2
    assert capsys.readouterr().err == f"botnet: {expected}"


@pytest.mark.parametrize(
    ("recipe", "option", "given", "used"),
    [
        ("quickstart", "model.detector.masks", "false", "true"),
        ("quickstart", "model.detector.canvas", "96", "160"),
        ("quickstart_classify", "model.image_size", "96", "64"),
    ],
)
def test_an_option_of_the_model_that_follows_the_data_is_refused(
    recipe, option, given, used, tmp_path, capsys
):
    base, follows = ["--config", f"recipes/{recipe}.yaml"], f"--data.{option.rpartition('.')[2]}"
    expected = f"--{option}: {given} would be ignored, since it follows {follows}, which is {used}; "
    expected += f"set {follows} {given} instead\n"
    for words in ([f"--{option}", given], [f"--{option}={given}"]):
        assert main(["fit", *base, *words]) == 2
        assert capsys.readouterr().err == f"botnet: {expected}"
    *path, name = option.split(".")
    lines = {name: yaml.safe_load(given)}
    for key in reversed(path[1:]):
        lines = {key: {"init_args": lines}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": {"init_args": lines}}))
    assert main(["fit", *base, "--config", str(recipe)]) == 2
    assert capsys.readouterr().err == f"botnet: {recipe}: {expected}"


def test_one_that_agrees_with_the_data_is_not(tmp_path, capsys):
    words = [
        "--model.detector.masks",
        "false",
        "--data.masks",
        "false",
        "--data.root",
        str(tmp_path / "absent"),
    ]
    assert main(["fit", "--config", "recipes/quickstart.yaml", *words]) == 2
    assert "absent: no such folder" in capsys.readouterr().err


def test_messages_of_another_form_are_joined_and_cut():
    assert explain("one\n  two") == "one two"
    assert explain("a" * 1000) == "a" * 300 + " ..."


def test_a_class_whose_module_needs_an_absent_package_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_data.py").write_text("import absent_package\n\nclass Data: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = ["--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", "recipes/quickstart.yaml", *run, "--data", "own_data.Data"]) == 2
    assert capsys.readouterr().err == (
        "botnet: --data: own_data.Data cannot be imported: No module named 'absent_package'\n"
    )
