"""Rows, the command lines that train them, and runs beside the paper."""

import json
from pathlib import Path

import pytest
import yaml
from matplotlib import pyplot as plt

from botnet import cli
from botnet.errors import ConfigError, DataError
from botnet.paper.report import PLOTS, report
from botnet.paper.rows import DATA_LAYOUTS, find_row, fit_arguments, rows
from botnet.paper.runs import read_run


@pytest.fixture
def coco_root(tmp_path) -> Path:
    """An empty COCO in the usual layout."""
    for part in DATA_LAYOUTS["coco"].values():
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
    """A row of each table, read from the paper a second time."""
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
        "--data.train_instances": str(coco_root / "annotations/instances_train2017.json"),
        "--data.train_images": str(coco_root / "train2017"),
        "--data.val_instances": str(coco_root / "annotations/instances_val2017.json"),
        "--data.val_images": str(coco_root / "val2017"),
        "--data.masks": "false",
        "--trainer.default_root_dir": "runs/table3/bot50-jitter-0.1-2.0-faster-rcnn",
    }


def test_further_options_are_passed_on_to_fit(coco_root, monkeypatch, capsys):
    given = []
    monkeypatch.setattr("botnet.cli.paper.run_lightning", lambda arguments: given.append(arguments) or 0)
    command = ["reproduce", "table5/r50", "--data", str(coco_root)]
    assert cli.main([*command, "--trainer.devices", "8", "--ckpt_path", "last"]) == 0
    assert given[0][-4:] == ["--trainer.devices", "8", "--ckpt_path", "last"]
    assert "botnet fit --config" in capsys.readouterr().err


def test_a_misspelt_row_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean .*table3/bot50-jitter-0.1-2.0"):
        find_row("table3/bot50-jitter-0.1-2")


def test_missing_data_are_named(tmp_path):
    with pytest.raises(DataError, match=r"train2017.*missing"):
        fit_arguments(find_row("table5/r50"), tmp_path, Path("runs"))


def test_imagenet_has_no_faster_rcnn(tmp_path):
    with pytest.raises(ConfigError, match="table9/r50 is classification"):
        fit_arguments(find_row("table9/r50"), tmp_path, Path("runs"), masks=False)


def test_other_commands_still_refuse_unknown_options(capsys):
    assert cli.main(["info", "botnet50", "--sise", "3", "4"]) == 2
    expected = "unrecognized arguments: --sise 3 4; did you mean --size, --help? (botnet info --help)"
    assert capsys.readouterr().err == f"botnet: {expected}\n"


def test_the_list_shows_runs_beside_the_paper(tmp_path, capsys):
    write_run(tmp_path / "table3/bot50-jitter-0.1-2.0", "table3/bot50-jitter-0.1-2.0", 40, box=scores(0.4321))
    write_run(tmp_path / "table5/r50", "table5/r50")
    broken = write_run(tmp_path / "table5/bot50", "table5/bot50", box="gone")
    assert cli.main(["reproduce", "--runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines() if "/" in line}
    assert "45.9" in lines["table3/bot50-jitter-0.1-2.0"]
    assert "43.2 / - (40/72)" in lines["table3/bot50-jitter-0.1-2.0"]
    assert "started" in lines["table5/r50"]
    assert "broken" in lines["table5/bot50"]
    assert str(broken) in shown
    assert set(rows()) <= set(lines)


def test_the_folder_of_the_runs_may_have_brackets(tmp_path, capsys):
    write_run(tmp_path / "exp[/v2]/table5/bot50", "table5/bot50", box="gone")
    assert cli.main(["reproduce", "--runs", str(tmp_path / "exp[/v2]")]) == 0
    assert "exp[/v2]/table5/bot50" in capsys.readouterr().out.replace("\n", "")


PAPER = "table3/bot50-jitter-0.1-2.0"


def cells(text: str, folder: Path) -> list[list[str]]:
    """The lines of a run in the report's table."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {folder} |")]
    return [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines]


def test_a_report_has_every_number_and_its_plots(tmp_path):
    run = write_run(tmp_path / "a", PAPER, box=scores(0.4321), mask=scores(0.4))
    own = write_run(tmp_path / "b", None, box=scores(0.5))
    waiting = write_run(tmp_path / "c", "table5/r50")
    text, problems = report([run, own, waiting], tmp_path / "out")
    assert not problems
    # Table 3 has no AP50.
    assert cells(text, run) == [
        [PAPER, "72 of 72", "box AP", "43.2", "45.9", "-2.7"],
        [PAPER, "72 of 72", "mask AP", "40.0", "40.7", "-0.7"],
    ]
    assert cells(text, own)[0] == ["", "72 of 72", "box AP", "50.0", "", ""]
    assert f"Not evaluated yet, 1: {waiting}." in text
    assert (tmp_path / "out" / "report.md").read_text() == text
    # No run of Tables 2, 5 and 6.
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["ap_jitter.png"]
    assert (tmp_path / "out" / "ap_jitter.png").stat().st_size > 10_000


def test_a_run_without_a_row_gets_no_plots(tmp_path):
    text, _ = report([write_run(tmp_path / "own", None, box=scores(0.5))], tmp_path / "out")
    assert "png" not in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.md"]


@pytest.mark.parametrize(
    ("plot", "row"), [("ap_epochs", "table2/bot50-24-epochs"), ("ap_madds", "table6/bot50-1280")]
)
def test_each_row_is_drawn_in_the_plot_of_its_table(plot, row, tmp_path):
    report([write_run(tmp_path / "run", row, box=scores(0.4))], tmp_path / "out")
    assert [path.stem for path in (tmp_path / "out").glob("*.png")] == [plot]


def drawn(runs: list[Path]) -> dict[str, list[float]]:
    """The lines of the plot against jitter: label and AP."""
    figure, axes = plt.subplots()
    coco = [row for row in rows().values() if row.family == "coco"]
    PLOTS["ap_jitter"].draw(axes, coco, [run for folder in runs if (run := read_run(folder))])
    lines = {line.get_label(): [float(y) for y in line.get_ydata()] for line in axes.lines}
    plt.close(figure)
    return lines


def test_every_run_of_a_row_is_shown_and_drawn(tmp_path):
    seeds = [write_run(tmp_path / f"seed{n}", PAPER, box=scores(n), mask=scores(0.4)) for n in (0.25, 0.5)]
    other = write_run(tmp_path / "other", "table3/bot50-jitter-0.5-2.0", box=scores(0.75), mask=scores(0.4))
    lines = drawn([*seeds, other])
    assert [lines[f"BoT50, Mask R-CNN: {folder}"] for folder in (*seeds, other)] == [[25], [50], [75]]
    assert lines["BoT50, mean of the Mask R-CNN runs"] == [75, 37.5]  # jitter [0.5, 2.0], [0.1, 2.0]
    text, _ = report(seeds, tmp_path / "out")
    assert [cells(text, folder)[0][3] for folder in seeds] == ["25.0", "50.0"]


def test_a_faster_rcnn_is_not_compared_with_mask_rcnn(tmp_path):
    mask = write_run(tmp_path / "mask", PAPER, box=scores(0.44), mask=scores(0.4))
    faster = write_run(tmp_path / "faster", PAPER, box=scores(0.25))
    for order in ([mask, faster], [faster, mask]):
        lines = drawn(order)
        assert lines[f"BoT50, Mask R-CNN: {mask}"] == [44]
        assert lines[f"BoT50, Faster R-CNN: {faster}"] == [25]
        text, _ = report(order, tmp_path / "out")
        assert cells(text, mask)[0][-3:] == ["44.0", "45.9", "-1.9"]
        assert cells(text, faster) == [[f"{PAPER} (Faster R-CNN)", "72 of 72", "box AP", "25.0", "", ""]]


def test_nothing_to_measure_is_a_dash(tmp_path):
    """COCO's AP of a validation set without objects is -1."""
    run = write_run(tmp_path / "run", PAPER, box=scores(-1), mask=scores(float("nan")))
    text, _ = report([run], tmp_path / "out")
    assert [line[-3:] for line in cells(text, run)] == [["-", "45.9", ""], ["-", "40.7", ""]]
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_pipe_in_a_name_does_not_break_the_table(tmp_path):
    run = write_run(tmp_path / "a|b_$1$", PAPER, box=scores(0.4), mask=scores(0.4))
    text, _ = report([run], tmp_path / "out")
    line = next(line for line in text.splitlines() if "mask AP" in line)
    assert line.replace(r"\|", "").count("|") == 8
    assert rf"{tmp_path}/a\|b_$1$ |" in line


def config_of(folder: Path, **content) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 72}} | content))


BREAKS = {
    "no JSON": lambda run: (run / "metrics.json").write_text("{"),
    "a list": lambda run: (run / "metrics.json").write_text("[1]"),
    "text as top-1": lambda run: (run / "metrics.json").write_text('{"epoch": 1, "top1": "good"}'),
    "infinite epoch": lambda run: (run / "metrics.json").write_text('{"epoch": Infinity}'),
    "row is a list": lambda run: config_of(run, row=[1]),
    "unknown row": lambda run: config_of(run, row="table3/none"),
    "no number of its row": lambda run: config_of(run, row="table9/r50"),
    "no trainer": lambda run: config_of(run, trainer=None),
    "no mapping": lambda run: (run / "config.yaml").write_text("text"),
    "no YAML": lambda run: (run / "config.yaml").write_text("a:\n - [\n"),
    "no config": lambda run: (run / "config.yaml").unlink(),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_run_is_left_out_and_named(what, tmp_path, capsys):
    whole = write_run(tmp_path / "whole", PAPER, box=scores(0.4321), mask=scores(0.4))
    broken = write_run(tmp_path / "broken", None, box=scores(0.1))
    BREAKS[what](broken)
    out = tmp_path / "out"
    assert cli.main(["report", str(broken), str(whole), "--output", str(out)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"left out: {broken}" in message
    text = (out / "report.md").read_text()
    assert f"- {broken}" in text
    assert "| 43.2 |" in text
    # Alone it is an error.
    assert cli.main(["report", str(broken), "--output", str(tmp_path / "none")]) == 2
    assert str(broken) in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("what", ["figure5", "runs"])
def test_a_report_cannot_go_into_a_file(what, tmp_path, capsys):
    run = write_run(tmp_path / "run", None, box=scores(0.5))
    for out in (run / "config.yaml", run / "config.yaml" / "below"):
        assert cli.main(["report", "figure5" if what == "figure5" else str(run), "--output", str(out)]) == 2
        assert f"{out}: cannot make this folder" in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        read_run(tmp_path)
