"""Images inside of an HTML page."""

import base64
import io

from PIL import Image

SHOWN = 1100  # pixels of an image on the page


def embedded(data: bytes, kind: str) -> str:
    """Bytes of an image as a URI that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def embedded_picture(picture: Image.Image) -> str:
    """A picture as JPEG, made smaller where it is wider or higher than the page shows."""
    picture = picture.convert("RGB")
    picture.thumbnail((SHOWN, SHOWN))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return embedded(file.getvalue(), "jpeg")
