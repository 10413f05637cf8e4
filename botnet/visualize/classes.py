"""The predictions of a classifier for a few images, on one sheet."""

from collections.abc import Sequence

from PIL import Image

from botnet.visualize.panels import captioned_grid

RIGHT, WRONG = "#1a7f37", "#cf222e"
LONGEST = 22  # characters of a name that fit under an image


def draw_sheet(shown: Sequence[tuple[Image.Image, str, str, float]]) -> Image.Image:
    """A grid of images, each above its class and the predicted one.

    Args:
        shown: for each image the image, its class, the predicted class and its probability.
    """
    return captioned_grid(
        [
            (
                image,
                (
                    (f"is: {_short(truth)}", "black"),
                    (f"{probability:.0%} {_short(predicted)}", RIGHT if predicted == truth else WRONG),
                ),
            )
            for image, truth, predicted, probability in shown
        ]
    )


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
