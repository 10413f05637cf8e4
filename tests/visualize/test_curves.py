"""Training curves."""

from matplotlib import pyplot as plt

from botnet.visualize.curves import plot_curves


def test_curves_leave_out_undefined_metrics(tmp_path, monkeypatch):
    """COCO's AP is -1 where the validation images have no objects."""
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    table = tmp_path / "metrics.csv"
    table.write_text("step,train/loss,val/box_AP,val/mask_AP\n1,2,,\n1,,-1.0,0.25\n2,,-1.0,0.5\n")
    plot_curves([table], tmp_path / "curves.png")
    monkeypatch.undo()
    _, metrics = drawn[0].axes
    assert {line.get_label(): list(line.get_ydata()) for line in metrics.lines} == {
        "val/mask_AP": [0.25, 0.5]
    }
    plt.close(drawn[0])


def test_curves_of_a_resumed_run_and_of_one_without_validation(tmp_path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("epoch,step,train/loss\n0,9,1.5\n0,19,1.2\n")
    second.write_text("epoch,step,train/loss,val/box_AP\n1,29,1.0,\n1,29,,0.2\n")
    for number, tables in enumerate(([first], [first, second])):
        plot_curves(tables, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5_000
