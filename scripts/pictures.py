"""The pictures of the README, and the explorer of the documentation, by `make pictures`.

From the detector of `make quickstart`: held-out images, truth beside prediction, over what one pixel of a
digit attends to in the first BoT block, head by head.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

CHECKPOINT = Path("runs/quickstart/checkpoints/best.ckpt")
DATA = Path("data/digits")
OUT = Path("docs/images")
EXPLORER = Path("docs/static/explore-digits.html")
IMAGES = ("000007.jpg", "000026.jpg")  # of the validation images
RESAMPLING = Image.Resampling.LANCZOS
WIDTH = 1600  # pixels of the first picture
MAX_BYTES = 300_000  # of each picture


def centre(truth: dict[str, Any], name: str) -> tuple[int, int]:
    """The centre of the largest digit of an image."""
    (image_id,) = (image["id"] for image in truth["images"] if image["file_name"] == name)
    boxes = [annotation["bbox"] for annotation in truth["annotations"] if annotation["image_id"] == image_id]
    x, y, width, height = max(boxes, key=lambda box: box[2] * box[3])
    return round(x + width / 2), round(y + height / 2)


def draw(name: str, pixel: tuple[int, int], folder: Path) -> tuple[Image.Image, Image.Image]:
    """Truth beside prediction of one image, and the attention of one of its pixels."""
    arguments = [
        "predict", str(CHECKPOINT), str(DATA / "val" / name), "--truth", str(DATA / "instances_val.json"),
        "--attention", "--pixel", *map(str, pixel), "--output", str(folder),
    ]  # fmt: skip
    finished = subprocess.run([sys.executable, "-m", "botnet.cli", *arguments])
    if finished.returncode:
        sys.exit(finished.returncode)
    stem = Path(name).stem
    return Image.open(folder / f"{stem}.png"), Image.open(folder / "attention" / f"{stem}.png")


def sheet(rows: list[list[Image.Image]], width: int, gap: int = 6) -> Image.Image:
    """Rows of pictures on white; those of a row have one height, and fill the width."""
    lines, height = [], -gap
    for row in rows:
        # Of unit height, the pictures of a row are as wide as their aspects.
        side = (width - gap * (len(row) - 1)) / sum(x.width / x.height for x in row)
        scaled = [x.resize((round(side * x.width / x.height), round(side)), RESAMPLING) for x in row]
        lines.append(scaled)
        height += round(side) + gap
    out, top = Image.new("RGB", (width, height), "white"), 0
    for line in lines:
        left = 0
        for picture in line:
            out.paste(picture, (left, top))
            left += picture.width + gap
        top += line[0].height + gap
    return out


def explore() -> None:
    """The page of the documentation on one of the images."""
    page = DATA / "val" / IMAGES[0]
    command = ["explore", str(CHECKPOINT.parents[1]), str(page), "--output", str(EXPLORER)]
    finished = subprocess.run([sys.executable, "-m", "botnet.cli", *command])
    if finished.returncode:
        sys.exit(finished.returncode)


def main() -> None:
    if not CHECKPOINT.is_file():
        sys.exit(f"{CHECKPOINT} does not exist; run make quickstart first")
    truth = json.loads((DATA / "instances_val.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        drawn = [draw(name, centre(truth, name), Path(folder) / name) for name in IMAGES]
        pictures = {
            "detection": sheet([[detection for detection, _ in drawn], [drawn[-1][1]]], WIDTH),
            "attention": drawn[-1][1],
        }
    OUT.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        path = OUT / f"{name}.jpg"
        picture.convert("RGB").save(path, quality=88, optimize=True)
        size = path.stat().st_size
        if size > MAX_BYTES:
            sys.exit(f"{path} has {size} bytes, more than {MAX_BYTES}")
        print(f"{path}: {picture.width} x {picture.height}, {size // 1000} kB")
    explore()


if __name__ == "__main__":
    main()
