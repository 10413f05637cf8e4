"""What a classifier said of a few images, on one sheet."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

TILE, CAPTION, COLUMNS = 176, 44, 4  # pixels, pixels, tiles in a row
RIGHT, WRONG = "#1a7f37", "#cf222e"


def draw_sheet(shown: Sequence[tuple[Image.Image, str, str, float]]) -> Image.Image:
    """A grid of images, under each its class and what the network took it for.

    Args:
        shown: of each image the picture, its class, the class predicted, and that one's probability.
    """
    rows = -(-len(shown) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for number, (picture, truth, predicted, probability) in enumerate(shown):
        x, y = number % COLUMNS * TILE, number // COLUMNS * (TILE + CAPTION)
        sheet.paste(picture.resize((TILE - 8, TILE - 8)), (x + 4, y + 4))
        pen.text((x + 4, y + TILE), f"is: {_short(truth)}", font=font, fill="black")
        pen.text(
            (x + 4, y + TILE + 18),
            f"{probability:.0%} {_short(predicted)}",
            font=font,
            fill=RIGHT if predicted == truth else WRONG,
        )
    return sheet


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"
