"""The results of `make study`: the tables of docs/study.md, and docs/images/study-*.png.

Tables come from the committed rows, finished or not. The pictures of receptive fields and of attention need
the weights in runs/study, which are on the machine that trained them.
"""

import argparse
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from study import (
    BANDS,
    CANVAS,
    CLASSES,
    DOCS,
    EVERY,
    NETWORKS,
    OPTIMISERS,
    QK_RATES,
    RUNS,
    SEEDS,
    START_SEEDS,
    STARTS,
    STRIDE,
    Pictures,
    Reader,
    attention_state,
    cell,
    pictures,
    planned,
    read_rows,
    start_attention,
    weights,
)  # fmt: skip
from torch import Tensor

from botnet.demo.relations import distance_bands
from botnet.layers import MHSA2d
from botnet.models import zoo

matplotlib.use("Agg")
from matplotlib import pyplot as plt

IMAGES = DOCS / "images"
MAX_BYTES = 300_000  # of a picture
SAMPLE = 64  # pictures
Rows = list[dict[str, str]]
COLOURS = {"resnet": "C3", "bot": "C0"}


def mean_std(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1); None for a single value."""
    values = list(values)
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def shown(values: list[float]) -> str:
    mean, spread = mean_std(values)
    return f"{mean:.3f}" if spread is None else f"{mean:.3f} ± {spread:.3f}"


def by_network(rows: Rows, task: str) -> dict[str, Rows]:
    """The rows of a task by network, in the order of the networks and of the seeds."""
    of_task = sorted((row for row in rows if row["task"] == task), key=lambda row: int(row["seed"]))
    found = {network: [row for row in of_task if row["network"] == network] for network in NETWORKS}
    return {network: some for network, some in found.items() if some}


def accuracy_tables(rows: Rows, seeds: dict[str, int]) -> str:
    """A Markdown table for each task; what is not finished is said."""
    parts = []
    for task in CLASSES:
        found = by_network(rows, task)
        if not found:
            continue
        lines = [
            f"**{task}**, {next(iter(found.values()))[0]['steps']} steps\n",
            "| network | parameters | multiply-adds | near | middle | far | far, each seed | CPU s a run |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for network, runs in found.items():
            columns = [shown([float(run[band]) for run in runs]) for band in BANDS]
            each = ", ".join(f"{float(run['far']):.3f}" for run in runs)
            if len(runs) < seeds[task]:
                each += f" ({len(runs)} of {seeds[task]} runs finished)"
            seconds = statistics.mean(float(run["seconds"]) for run in runs)
            counts = (int(runs[0][name]) / 1e6 for name in ("parameters", "multiply_adds"))
            lines.append(
                f"| {NETWORKS[network][0]} | {' | '.join(f'{count:.2f} M' for count in counts)} "
                f"| {' | '.join(columns)} | {each} | {seconds:.0f} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def plot_accuracy(rows: Rows, path: Path) -> None:
    """Accuracy by band, every network beside the others, the standard deviation as error bar."""
    tasks = [task for task in CLASSES if by_network(rows, task)]
    figure, axes = plt.subplots(
        len(tasks), 1, figsize=(11, 2.9 * len(tasks)), layout="constrained", squeeze=False
    )
    shades = ["#9ecae1", "#4292c6", "#08306b"]
    for axis, task in zip(axes[:, 0], tasks, strict=True):
        found = by_network(rows, task)
        for i, (band, shade) in enumerate(zip(BANDS, shades, strict=True)):
            values = [[float(run[band]) for run in runs] for runs in found.values()]
            places = np.arange(len(found)) + 0.27 * (i - 1)
            means, spreads = zip(*map(mean_std, values), strict=True)
            low, high = distance_bands(task, CANVAS)[band]
            axis.bar(places, means, 0.25, color=shade, label=f"{band}, {low:.0f}-{high:.0f} px")
            several = [j for j, spread in enumerate(spreads) if spread is not None]
            axis.errorbar(
                places[several], [means[j] for j in several], [spreads[j] for j in several],
                fmt="none", ecolor="black", capsize=3, linewidth=1,
            )  # fmt: skip
            for place, some in zip(places, values, strict=True):
                axis.plot([place] * len(some), some, ".", color="#d94801", markersize=4)
        axis.axhline(1 / len(CLASSES[task]), color="grey", linestyle=":", linewidth=1)
        names = [
            NETWORKS[network][0].replace(", ", ",\n").replace(" in ", "\nin ").replace("BoT's ", "BoT's\n")
            for network in found
        ]
        axis.set_xticks(range(len(found)), names, fontsize=7)
        axis.set(ylim=(0, 1.02), ylabel="accuracy", xlim=(-0.6, len(NETWORKS) - 0.4))
        axis.set_title(f"{task} (dots: seeds; dotted: chance)", fontsize=10, loc="left")
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)


# Receptive fields.


def trained(task: str, network: str, seed: int) -> Reader:
    model = Reader(NETWORKS[network][1], len(CLASSES[task]))
    model.load_state_dict(torch.load(weights((task, network, seed)), weights_only=True))
    return model.eval()


def untrained(task: str, network: str, seed: int) -> Reader:
    """A network at its start; its batch norms know the statistics of the pictures."""
    torch.manual_seed(seed)
    model = Reader(NETWORKS[network][1], len(CLASSES[task])).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of what it sees
    with torch.no_grad():
        model.c5(pictures(task, "train").pixels[:SAMPLE])
    return model.eval()


def receptive_field(model: Reader, data: Pictures) -> np.ndarray:
    """The absolute gradient of the corner cell of c5 by the input, mean over pictures, (H, W)."""
    pixels = data.pixels[:SAMPLE].float().requires_grad_()
    (gradient,) = torch.autograd.grad(model.c5(pixels)[:, :, 0, 0].sum(), pixels)
    return gradient.abs().sum(1).mean(0).numpy()


def distances() -> np.ndarray:
    """Distance of each pixel from the centre of the corner cell, (H, W)."""
    from_centre = np.arange(CANVAS) + 0.5 - STRIDE / 2
    return np.hypot(*np.meshgrid(from_centre, from_centre))


def field_table(fields: dict[tuple[str, str], np.ndarray]) -> str:
    """How much of the gradient comes from how far, as a Markdown table."""
    edges = [distance_bands("cue", CANVAS)[band][0] for band in BANDS]
    away = distances()
    lines = [
        "| network | state | "
        + " | ".join(f"from {edge:.0f} px" for edge in edges)
        + " | half of it within |",
        "|---|---|---|---|---|---|",
    ]
    fields = fields | {("any", "even over the picture"): np.ones((CANVAS, CANVAS))}
    for (network, state), field in fields.items():
        shares = [field[away >= edge].sum() / field.sum() for edge in edges]
        order = np.argsort(away, axis=None)
        reached = np.searchsorted(np.cumsum(field.ravel()[order]), field.sum() / 2)
        half = away.ravel()[order][reached]
        name = NETWORKS[network][0] if network in NETWORKS else "-"
        lines.append(f"| {name} | {state} | {' | '.join(f'{s:.4f}' for s in shares)} | {half:.0f} px |")
    return "\n".join(lines)


def plot_fields(fields: dict[tuple[str, str], np.ndarray], path: Path) -> None:
    """The fields of ResNet and BoT before and after training, and their profiles beside the bands."""
    chosen = {key: field for key, field in fields.items() if key[0] in COLOURS}
    figure = plt.figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.1))[0]
    away = distances()
    for axis, ((network, state), field) in zip(left.subplots(2, 2).flat, chosen.items(), strict=True):
        blocks = field.reshape(CANVAS // 2, 2, CANVAS // 2, 2).mean((1, 3))
        shades = np.log10(np.maximum(blocks / blocks.max(), 1e-4))
        extent = (0, CANVAS, CANVAS, 0)
        drawn = axis.imshow(shades, cmap="inferno", vmin=-4, vmax=0, extent=extent)
        axis.contour(
            away, [distance_bands("cue", CANVAS)[band][0] for band in BANDS], colors="white", linewidths=0.7
        )
        axis.set_title(f"{NETWORKS[network][0]}, {state}", fontsize=9)
        axis.set(xticks=[], yticks=[])
    left.colorbar(drawn, ax=left.axes, label="log10 of the gradient over its maximum", shrink=0.8)
    axis = right.subplots()
    bins = np.arange(0, 160, 8)
    which = np.digitize(away, bins) - 1
    for (network, state), field in chosen.items():
        profile = np.array([field[which == i].mean() for i in range(len(bins)) if (which == i).any()])
        axis.semilogy(
            bins[: len(profile)] + 4, profile / profile.max(), color=COLOURS[network],
            linestyle="--" if state == "before" else "-", label=f"{NETWORKS[network][0]}, {state} training",
        )  # fmt: skip
    for band, shade in zip(BANDS, (0.06, 0.12, 0.18), strict=True):
        low, high = distance_bands("cue", CANVAS)[band]
        axis.axvspan(low, high, color="black", alpha=shade, linewidth=0)
        axis.text((low + high) / 2, 1.3, band, ha="center", fontsize=9)
    axis.set(
        xlabel="distance from the centre of the corner cell of c5, pixels", ylim=(1e-4, 2),
        ylabel="mean gradient of a pixel, over the largest",
    )  # fmt: skip
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower left")
    save(figure, path)


# Attention.


def touched(box: list[float], size: tuple[int, int]) -> Tensor:
    """Cells of a map that a box touches, (H * W) bool."""
    x, y, width, height = box
    rows, columns = (torch.arange(n) * CANVAS / n for n in size)
    in_rows = (rows < y + height) & (rows + CANVAS / size[0] > y)
    in_columns = (columns < x + width) & (columns + CANVAS / size[1] > x)
    return (in_rows[:, None] & in_columns).flatten()


@torch.no_grad()
def object_attention(model: Reader, data: Pictures) -> dict[str, tuple[Tensor, Tensor]]:
    """For each BoT block the weights (n, heads, N) of each object's cell, and its cue's cells (n, N) bool."""
    layers = {name: layer for name, layer in model.trunk.named_modules() if isinstance(layer, MHSA2d)}
    found: dict[str, list[Tensor]] = defaultdict(list)

    def look(name: str) -> Callable[..., None]:
        def hook(layer: MHSA2d, inputs: tuple[Tensor]) -> None:
            size = inputs[0].shape[-1]
            start = sum(map(len, found[name]))
            records = data.records[start : start + len(inputs[0])]
            cells = [cell(of_image[0]["bbox"], CANVAS // size) for of_image in records]
            queries = torch.tensor([row * size + column for row, column in cells])
            every = layer.attention_weights(inputs[0], torch.arange(size * size))
            found[name].append(every[torch.arange(len(queries)), :, queries])

        return hook

    handles = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    for pixels in data.pixels.split(100):
        model.c5(pixels)
    for handle in handles:
        handle.remove()
    result = {}
    for name, parts in found.items():
        rows = torch.cat(parts)
        side = math.isqrt(rows.shape[-1])
        boxes = [of_image[0]["attributes"]["partner_bbox"] for of_image in data.records]
        result[name] = rows, torch.stack([touched(box, (side, side)) for box in boxes])
    return result


def attention_table(seeds: list[int]) -> str:
    """The share of an object's attention that falls on its cue, by block, head and band."""
    data = pictures("cue", "val")
    band = data.objects[:, 0, 3]
    lines = ["| seed | block | cells | head | " + " | ".join(BANDS) + " | even |", "|" + "---|" * 8]
    for seed in seeds:
        for name, (rows, cue) in object_attention(trained("cue", "bot", seed), data).items():
            share = (rows * cue[:, None]).sum(-1)  # n, heads
            side = math.isqrt(rows.shape[-1])
            for head in range(share.shape[1]):
                shares = [f"{share[band == i, head].mean():.3f}" for i in range(len(BANDS))]
                lines.append(
                    f"| {seed} | {name.removesuffix('.conv2')} | {side} x {side} | {head + 1} "
                    f"| {' | '.join(shares)} | {cue.float().mean():.3f} |"
                )
    return "\n".join(lines)


def plot_attention(path: Path, number: int = 3) -> None:
    """What an object's cell attends to in the first block of c5, in the first held-out far pictures."""
    data = pictures("cue", "val")
    far = [i for i in range(len(data.pixels)) if data.objects[i, 0, 3] == BANDS.index("far")][:number]
    chosen = Pictures(data.pixels[far], data.objects[far], [data.records[i] for i in far])
    rows, cue = next(iter(object_attention(trained("cue", "bot", 0), chosen).values()))
    heads, side = rows.shape[1], math.isqrt(rows.shape[-1])
    figure, axes = plt.subplots(
        number, 1 + heads, figsize=(2.3 * (1 + heads), 2.5 * number), layout="constrained"
    )
    for line, picture, weights_, on_cue, (record, *_) in zip(
        axes, chosen.pixels, rows, cue, chosen.records, strict=True
    ):
        for axis, head in zip(line, [None, *range(heads)], strict=True):
            axis.imshow(picture.permute(1, 2, 0), extent=(0, CANVAS, CANVAS, 0))
            for box, colour in ((record["bbox"], "white"), (record["attributes"]["partner_bbox"], "cyan")):
                axis.add_patch(plt.Rectangle(box[:2], *box[2:], fill=False, edgecolor=colour, linewidth=1.5))
            axis.set(xticks=[], yticks=[])
            if head is None:
                axis.set_title("object white, cue cyan", fontsize=9)
                continue
            axis.imshow(
                weights_[head].view(side, side),
                extent=(0, CANVAS, CANVAS, 0),
                cmap="inferno",
                alpha=0.75,
                vmin=0,
            )
            share = weights_[head][on_cue].sum()
            axis.set_title(f"head {head + 1}: {share:.2f} (even {on_cue.float().mean():.2f})", fontsize=9)
    save(figure, path)


# Starts.


def starts_table(rows: Rows) -> str:
    lines = [
        "| optimiser | start | rate of q, k | wakes at step, each seed | accuracy | entropy at 0, 100, 400 "
        "| spread at 0, 100, 400 |",
        "|---|---|---|---|---|---|---|",
    ]
    for (optimiser, start, rate), runs in grouped(rows).items():
        states = []
        for name, form in (("entropy", "{:.3f}"), ("spread", "{:.3g}")):
            series = np.mean([[float(value) for value in run[name].split()] for run in runs], axis=0)
            states.append(", ".join(form.format(series[step // EVERY]) for step in (0, 100, 400)))
        wakes = ", ".join(run["wakes"] or "never" for run in runs)
        if len(runs) < START_SEEDS:
            wakes += f" ({len(runs)} of {START_SEEDS} runs finished)"
        accuracy = shown([float(run["accuracy"]) for run in runs])
        lines.append(
            f"| {optimiser} | {start} | {float(rate):g} x | {wakes} | {accuracy} | {' | '.join(states)} |"
        )
    return "\n".join(lines)


def grouped(rows: Rows) -> dict[tuple[str, str, str], Rows]:
    keys = [(o, s, str(r)) for o in OPTIMISERS for s in STARTS for r in QK_RATES]
    found = {key: [r for r in rows if (r["optimiser"], r["start"], r["qk_rate"]) == key] for key in keys}
    return {key: sorted(runs, key=lambda run: run["seed"]) for key, runs in found.items() if runs}


def plot_starts(rows: Rows, path: Path) -> None:
    """Entropy and spread of the logits over training; a line is a seed."""
    figure, axes = plt.subplots(2, len(OPTIMISERS), figsize=(12, 7), layout="constrained", sharex=True)
    for (optimiser, start, rate), runs in grouped(rows).items():
        column = OPTIMISERS.index(optimiser)
        for number, run in enumerate(runs):
            for axis, name in zip(axes[:, column], ("entropy", "spread"), strict=True):
                values = [float(value) for value in run[name].split()]
                axis.plot(
                    np.arange(len(values)) * EVERY, values, color=f"C{STARTS.index(start)}", linewidth=1.2,
                    linestyle="-" if float(rate) == 1 else "--",
                    label=f"{start}, {float(rate):g} x" if number == 0 else None,
                )  # fmt: skip
    for column, optimiser in enumerate(OPTIMISERS):
        axes[0, column].set(title=optimiser, ylabel="entropy over that of even attention")
        axes[1, column].set(yscale="log", xlabel="step", ylabel="standard deviation of the logits")
        if axes[1, column].lines:
            axes[1, column].legend(fontsize=8)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    save(figure, path)


def widths_table() -> str:
    """How even attention is at the start, by width and start: nothing is trained."""
    data = pictures("cue", "train")
    lines = [
        "| network | width | start | entropy over even | spread of the logits |",
        "|---|---|---|---|---|",
    ]
    networks = {"this study's": NETWORKS["bot"][1]}
    networks |= {name: replace(zoo.NETWORKS[name], img_size=CANVAS) for name in ("botnet_tiny", "botnet50")}
    for name, network in networks.items():
        for start in STARTS:
            torch.manual_seed(0)
            model = Reader(network, 2).train()
            start_attention(model, start)
            entropy, spread = attention_state(model, data)
            lines.append(f"| {name} | {network.widths[-1]} | {start} | {entropy:.4f} | {spread:.3g} |")
    return "\n".join(lines)


# The page.


def save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=90)
    plt.close(figure)
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(128)  # colours: a third of the bytes
    few.save(path, optimize=True)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{path} has {size} bytes, more than {MAX_BYTES}")
    print(f"{path}: {size // 1000} kB")


def insert(page: Path, name: str, text: str, script: str = Path(__file__).name) -> None:
    """Replace what stands between the two marks of a part of a page."""
    mark = f"<!-- {name}: written by scripts/{script} -->\n", f"<!-- end of {name} -->"
    old = page.read_text()
    pattern = re.escape(mark[0]) + ".*?" + re.escape(mark[1])
    new, times = re.subn(pattern, lambda _: f"{mark[0]}\n{text}\n\n{mark[1]}", old, flags=re.DOTALL)
    if times != 1:
        raise SystemExit(f"{page}: expected the marks of {name} once, found them {times} times")
    page.write_text(new)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only print the table of make study-quick")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        print(accuracy_tables(read_rows(RUNS / "quick.csv"), dict.fromkeys(CLASSES, 1)))
        return
    page, rows, starts = (
        DOCS / "study.md",
        read_rows(DOCS / "study.csv"),
        read_rows(DOCS / "study-starts.csv"),
    )
    texts = {
        "accuracies": f"{len(rows)} of {len(planned())} runs are finished.\n\n{accuracy_tables(rows, SEEDS)}"
    }
    plot_accuracy(rows, IMAGES / "study-accuracy.png")
    if starts:
        texts["starts"] = starts_table(starts)
        plot_starts(starts, IMAGES / "study-starts.png")
    texts["widths"] = widths_table()
    found = [network for network in NETWORKS if weights(("cue", network, 0)).is_file()]
    if COLOURS.keys() <= set(found):
        held_out, fields = pictures("cue", "val"), {}
        for network in found:
            if network in COLOURS:
                fields[network, "before"] = receptive_field(untrained("cue", network, 0), held_out)
            fields[network, "after"] = receptive_field(trained("cue", network, 0), held_out)
        texts["fields"] = field_table(fields)
        plot_fields(fields, IMAGES / "study-field.png")
        texts["attention"] = attention_table(
            [s for s in range(SEEDS["cue"]) if weights(("cue", "bot", s)).is_file()]
        )
        plot_attention(IMAGES / "study-attention.png")
    else:
        print(f"{RUNS} lacks ResNet and BoT of cue, seed 0: receptive fields and attention stay as they are")
    for name, text in texts.items():
        insert(page, name, text)
        print(f"\n{text}")


if __name__ == "__main__":
    main()
