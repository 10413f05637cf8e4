"""What a data set holds, as pictures and as a page."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 40  # of which a picture shows the counts
TYPES = {".png": "image/png", ".jpg": "image/jpeg"}


def plot_distributions(
    folder: Path,
    sides: np.ndarray,
    marks: Mapping[str, float],
    aspects: np.ndarray,
    per_image: np.ndarray,
    classes: Mapping[str, int],
) -> dict[str, Path]:
    """Plot what a data set holds.

    Args:
        folder: for the pictures.
        sides: of each object, the square root of its box's area in canvas pixels.
        marks: sides to be marked, by name.
        aspects: width / height of each object's box.
        per_image: objects of each image.
        classes: objects of each class.

    Returns:
        The pictures by what they show.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = {}
    for name, values, label in (
        ("sizes", sides, "side of an object on the canvas (square root of width x height), pixels"),
        ("aspects", aspects, "width / height of an object"),
    ):
        figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
        edges = np.geomspace(values.min(), max(values.max(), values.min() * 1.01), 41)
        axis.hist(values, bins=edges.tolist(), color="tab:blue")
        axis.set(xscale="log", xlabel=label, ylabel="objects")
        axis.xaxis.set_major_formatter("{x:g}")
        if name == "sizes":
            axis.set_xlim(left=0.9 * min(values.min(), *marks.values()))
            for mark, side in marks.items():
                axis.axvline(side, color="tab:red", linewidth=1)
                axis.text(side, axis.get_ylim()[1], f" {mark}", color="tab:red", va="top", fontsize=8)
        drawn[name] = _save(figure, folder / f"{name}.png")
    figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axis.hist(per_image, bins=(np.arange(per_image.max() + 2) - 0.5).tolist(), color="tab:blue")
    axis.set(xlabel="objects in an image", ylabel="images")
    drawn["objects"] = _save(figure, folder / "objects.png")
    most = sorted(classes.items(), key=lambda item: -item[1])[:MOST_CLASSES]
    figure, axis = plt.subplots(figsize=(7, 1 + 0.25 * len(most)), layout="constrained")
    bars = axis.barh([name for name, _ in most], [count for _, count in most], color="tab:blue")
    axis.bar_label(bars, padding=3)
    axis.invert_yaxis()
    axis.set(xlabel="objects", title="" if len(most) == len(classes) else f"the {len(most)} largest classes")
    axis.margins(x=0.1, y=0.01)
    drawn["classes"] = _save(figure, folder / "classes.png")
    return drawn


def _save(figure: "Figure", path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


Section = tuple[str, Sequence[str], Sequence[Path]]  # title, paragraphs, pictures


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write a page of text and pictures that needs no other file.

    Args:
        path: HTML file to write.
        title: of the page.
        sections: title, paragraphs and picture files of each.
    """
    parts = []
    for heading, paragraphs, pictures in sections:
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        parts += [f"<p>{html.escape(text)}</p>" for text in paragraphs]
        parts += [
            f'<img alt="{html.escape(picture.stem)}" src="data:{TYPES[picture.suffix]};base64,'
            f'{base64.b64encode(picture.read_bytes()).decode()}">'
            for picture in pictures
        ]
    body = "body{font:16px sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
    style = body + "img{max-width:48%;margin:4px}"
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style></head><body><h1>{html.escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n",
        "utf-8",
    )
