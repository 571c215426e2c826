"""Images inside of the page."""

from __future__ import annotations

import base64
import io

from PIL import Image as PILImage


def data_url(image: PILImage.Image, quality: int) -> str:
    """Returns an image as a data URL of WebP of a quality of 0 to 100."""
    file = io.BytesIO()
    image.save(file, "webp", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
