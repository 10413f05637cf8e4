"""A wrong option is answered by one line and exit status 2."""

import pytest

from botnet.cli import main
from botnet.training.option_errors import explain


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["--model.learning_rat", "0.01"],
            "--model.learning_rat: no such option; did you mean learning_rate, warmup_learning_rate, "
            "decay_at? (botnet fit --help lists all)",
        ),
        (
            ["--model.detector.roi_sampl", "3"],
            "--model.detector.roi_sampl: no such option; did you mean roi_samples, rpn_samples? "
            "(botnet fit --help lists all)",
        ),
        (
            ["--trainer.max_epochs", "abc"],
            "--trainer.max_epochs: 'abc' is not allowed; give an integer or null",
        ),
        (["--data.canvas", "x"], "--data.canvas: 'x' is not allowed; give an integer"),
        (["--global_batch", "x"], "--global_batch: 'x' is not allowed; give an integer or null"),
        (
            ["--batch_rule", "linar"],
            "--batch_rule: 'linar' is not allowed; give accumulate or linear; did you mean linear?",
        ),
        (["--datas.canvas", "3"], "unrecognized arguments: --datas.canvas 3"),
        (["--model.detector.backbone"], "argument --model: expected one argument"),
    ],
)
def test_the_command_answers_in_one_line(given, expected, tmp_path, capsys):
    run = ["--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", "recipes/quickstart.yaml", *run, *given]) == 2
    assert capsys.readouterr().err == f"botnet: {expected}\n"
    assert not (tmp_path / "run").exists()


def test_messages_of_another_form_are_joined_and_cut():
    assert explain("one\n  two") == "one two"
    assert explain("a" * 1000) == "a" * 300 + " ..."
