"""Training curves."""

import pytest
from matplotlib import pyplot as plt

from botnet.visualize.curves import plot_curves


@pytest.fixture
def figure_of(tmp_path, monkeypatch):
    """The figure that is made of a CSV log."""
    kept = []

    def make(text):
        table = tmp_path / "metrics.csv"
        table.write_text(text)
        with monkeypatch.context() as patch:
            patch.setattr(plt, "close", kept.append)
            plot_curves([table], tmp_path / "curves.png")
        return kept[-1]

    yield make
    for figure in kept:
        plt.close(figure)


def test_curves_leave_out_undefined_metrics(figure_of):
    """COCO's AP is -1 where the validation images have no objects."""
    figure = figure_of("step,train/loss,val/box_AP,val/mask_AP\n1,2,,\n1,,-1.0,0.25\n2,,-1.0,0.5\n")
    _, metrics = figure.axes
    assert {line.get_label(): list(line.get_ydata()) for line in metrics.lines} == {
        "val/mask_AP  0.500": [0.25, 0.5]
    }


def test_curves_leave_out_a_half_written_row(figure_of):
    """A killed run may leave one, and be resumed."""
    losses, _ = figure_of("step,train/loss\n1,0.5\n2,0.25\n3,1e-").axes
    assert list(losses.lines[0].get_ydata()) == [0.5, 0.25]


def test_a_single_validation_is_drawn_as_bars_with_their_values(figure_of):
    figure = figure_of("step,train/loss,val/box_AP,val/mask_AP\n1,2,,\n9,,0.125,0.0625\n")
    _, metrics = figure.axes
    assert [patch.get_width() for patch in metrics.patches] == [0.125, 0.0625]
    assert [text.get_text() for text in metrics.texts] == ["0.125", "0.062"]
    assert [label.get_text() for label in metrics.get_yticklabels()] == ["val/box_AP", "val/mask_AP"]
    assert metrics.get_title() == "validation at step 9"


def test_validation_losses_stand_beside_those_of_training(figure_of):
    figure = figure_of(
        "step,train/loss,train/box,val/loss,val/box,val/model_loss,val/box_AP\n"
        "1,2,1,,,,\n5,1.5,0.5,,,,\n5,,,1.8,0.75,1,0.5\n9,,,1.9,0.8,1,0.6\n"
    )
    losses, metrics = figure.axes
    lines = {line.get_label().split()[0]: line for line in losses.lines}
    assert set(lines) == {"train/loss", "train/box", "val/loss", "val/box"}
    assert lines["train/box"].get_color() == lines["val/box"].get_color() != lines["val/loss"].get_color()
    assert list(lines["val/box"].get_ydata()) == [0.75, 0.8]
    assert [line.get_label() for line in metrics.lines] == ["val/box_AP  0.600"]


def test_legends_lie_beside_the_curves(figure_of):
    figure = figure_of("step,train/loss,val/loss,val/AP50\n1,2,,\n5,,1.8,0.75\n9,,1,0.5\n")
    figure.canvas.draw()
    for axis in figure.axes:
        assert axis.get_legend().get_window_extent().x0 >= axis.get_window_extent().x1
        assert axis.get_legend().get_window_extent().x1 <= figure.bbox.x1


def test_curves_of_a_resumed_run_and_of_one_without_validation(tmp_path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("epoch,step,train/loss\n0,9,1.5\n0,19,1.2\n")
    second.write_text("epoch,step,train/loss,val/box_AP\n1,29,1.0,\n1,29,,0.2\n")
    for number, tables in enumerate(([first], [first, second])):
        plot_curves(tables, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5_000
