"""Several images on one sheet, with their titles or captions."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

TITLE_BAR, GAP = 26, 6  # pixels; the bar grows with panels higher than 650
TILE, CAPTION_LINE, COLUMNS = 176, 18, 4  # pixels, pixels, tiles in a row

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def titled_row(panels: Sequence[tuple[Image.Image, str]], box: Box | None = None) -> Image.Image:
    """Images of one height side by side, each below its title.

    Args:
        panels: images and their titles.
        box: outlined in each image.
    """
    width = sum(image.width + GAP for image, _ in panels) - GAP
    bar = max(TITLE_BAR, panels[0][0].height // 25)
    sheet = Image.new("RGB", (width, panels[0][0].height + bar), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15 * bar // TITLE_BAR)
    left = 0
    for image, title in panels:
        sheet.paste(image, (left, bar))
        pen.text((left + 4, bar // 6), title, font=font, fill="black")
        if box is not None:
            x1, y1, x2, y2 = (left + box[0], bar + box[1], left + box[2], bar + box[3])
            pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="black", width=1)
            pen.rectangle((x1, y1, x2, y2), outline="white", width=2)
        left += image.width + GAP
    return sheet


def titled_column(panels: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Images one above the other, each below its title."""
    size = max(image.width for image, _ in panels), sum(image.height + TITLE_BAR for image, _ in panels)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    top = 0
    for image, title in panels:
        pen.text((4, top + 4), title, font=font, fill="black")
        sheet.paste(image, (0, top + TITLE_BAR))
        top += image.height + TITLE_BAR
    return sheet


def captioned_grid(tiles: Sequence[tuple[Image.Image, Sequence[tuple[str, str]]]]) -> Image.Image:
    """Images as squares of one size in rows of four, each above two lines of text.

    Args:
        tiles: images, and the text and colour of each line.
    """
    height = TILE + 2 * CAPTION_LINE + 8
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for number, (image, lines) in enumerate(tiles):
        x, y = number % COLUMNS * TILE, number // COLUMNS * height
        sheet.paste(image.resize((TILE - 8, TILE - 8)), (x + 4, y + 4))
        for line, (text, colour) in enumerate(lines):
            pen.text((x + 4, y + TILE + line * CAPTION_LINE), text, font=font, fill=colour)
    return sheet
