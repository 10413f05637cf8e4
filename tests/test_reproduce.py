"""Rows, the command lines that train them, and runs beside the paper."""

import json
from pathlib import Path

import pytest
import yaml

from botnet import cli
from botnet.errors import DataError
from botnet.report import report
from botnet.reproduce import LAYOUTS, find_row, fit_arguments, read_run, rows


@pytest.fixture
def coco_root(tmp_path) -> Path:
    """An empty COCO, of the usual layout."""
    for part in LAYOUTS["coco"].values():
        path = tmp_path / "coco" / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix else path.mkdir()
    return tmp_path / "coco"


def write_run(folder: Path, row: str | None, epoch: int = 72, **metrics) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"row": row, "trainer": {"max_epochs": 72}}))
    if metrics:
        (folder / "metrics.json").write_text(json.dumps({"epoch": epoch, "step": 1, **metrics}))
    return folder


def scores(ap: float) -> dict:
    return {"AP": ap, "AP50": ap + 0.2, "AP75": ap}


def test_numbers_of_the_paper():
    """Read off the tables once more, a row of each."""
    known = rows()
    assert known["table2/bot50-24-epochs"].facts["box"] == 42.8
    assert known["table3/r50-jitter-0.5-2.0"].facts["mask"] == 39.1
    assert known["table4/bot50-qr"].facts["box"] == 43.1
    assert known["table5/bot152"].facts["mask"] == 40.6
    assert known["table6/bot101-1280"].facts["box"] == 47.9
    assert known["table7/r50-bot-c4-c5"].facts["mask"] == 39.7
    assert known["table8/bot200"].facts["mask75"] == 48.2
    assert known["table9/bot-s1-50"].facts["top1"] == 77.7
    assert known["table10/bot50"].facts["top5"] == 94.2
    assert known["scaled/t7"].facts["top1"] == 84.7


def test_a_row_becomes_a_command_line(coco_root):
    arguments = fit_arguments(find_row("table3/bot50-jitter-0.1-2.0"), coco_root, Path("runs"), masks=False)
    assert arguments[:2] == ["fit", "--config"]
    assert arguments[2].endswith("recipes/coco/table3/bot50-jitter-0.1-2.0.yaml")
    options = dict(zip(arguments[3::2], arguments[4::2], strict=True))
    assert options == {
        "--data.init_args.train_instances": str(coco_root / "annotations/instances_train2017.json"),
        "--data.init_args.train_images": str(coco_root / "train2017"),
        "--data.init_args.val_instances": str(coco_root / "annotations/instances_val2017.json"),
        "--data.init_args.val_images": str(coco_root / "val2017"),
        "--data.init_args.masks": "false",
        "--trainer.default_root_dir": "runs/table3/bot50-jitter-0.1-2.0-faster-rcnn",
    }


def test_the_command_hands_further_options_on(coco_root, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(cli, "_train", lambda arguments: given.append(arguments) or 0)
    command = ["reproduce", "table5/r50", "--data", str(coco_root)]
    assert cli.main([*command, "--trainer.devices", "8", "--ckpt_path", "last"]) == 0
    assert given[0][-4:] == ["--trainer.devices", "8", "--ckpt_path", "last"]
    assert "botnet fit --config" in capsys.readouterr().out


def test_a_misspelt_row_names_its_neighbours():
    with pytest.raises(DataError, match=r"did you mean .*table3/bot50-jitter-0.1-2.0"):
        find_row("table3/bot50-jitter-0.1-2")


def test_data_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match=r"train2017.*missing"):
        fit_arguments(find_row("table5/r50"), tmp_path, Path("runs"))


def test_imagenet_has_no_faster_rcnn(tmp_path):
    with pytest.raises(DataError, match="table9/r50 is classification"):
        fit_arguments(find_row("table9/r50"), tmp_path, Path("runs"), masks=False)


def test_other_commands_still_refuse_unknown_options(capsys):
    with pytest.raises(SystemExit):
        cli.main(["info", "botnet50", "--sise", "3", "4"])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_the_list_shows_runs_beside_the_paper(tmp_path, capsys):
    write_run(tmp_path / "table3/bot50-jitter-0.1-2.0", "table3/bot50-jitter-0.1-2.0", 40, box=scores(0.4321))
    write_run(tmp_path / "table5/r50", "table5/r50")
    assert cli.main(["reproduce", "--runs", str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if "/" in line}
    assert "45.9" in lines["table3/bot50-jitter-0.1-2.0"]
    assert "43.2 (40/72)" in lines["table3/bot50-jitter-0.1-2.0"]
    assert "started" in lines["table5/r50"]
    assert set(rows()) <= set(lines)


def test_a_report_has_every_number_and_its_plots(tmp_path):
    run = write_run(tmp_path / "a", "table3/bot50-jitter-0.1-2.0", box=scores(0.4321), mask=scores(0.4))
    own = write_run(tmp_path / "b", None, box=scores(0.5))
    waiting = write_run(tmp_path / "c", "table5/r50")
    text = report([run, own, waiting], tmp_path / "out")
    line = next(line for line in text.splitlines() if "mask AP |" in line and "/a |" in line)
    # 40.0 measured, 40.7 in Table 3
    assert line.endswith("| 72 of 72 | mask AP | 40.0 | 40.7 | -0.7 |")
    assert "AP50" not in "".join(line for line in text.splitlines() if "/a |" in line)  # Table 3 has none
    assert "| 50.0 |  |  |" in text
    assert f"Not evaluated yet, 1: {waiting}." in text
    assert (tmp_path / "out" / "report.md").read_text() == text
    for plot in ("ap_epochs", "ap_jitter", "ap_madds"):
        assert (tmp_path / "out" / f"{plot}.png").stat().st_size > 10_000


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        read_run(tmp_path)
    broken = write_run(tmp_path / "run", None, box=scores(0.1))
    (broken / "metrics.json").write_text("{")
    with pytest.raises(DataError, match="broken"):
        read_run(broken)
    stranger = write_run(tmp_path / "stranger", "table3/none", box=scores(0.1))
    with pytest.raises(DataError, match="tables do not have"):
        report([stranger], tmp_path / "out")
