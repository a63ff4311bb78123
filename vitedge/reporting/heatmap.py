"""Draw maps of patches over the picture that they explain."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from vitedge.core.files import FileKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from vitedge.evaluation.attribution import Map, PictureExplanation

PNG = FileKind("a PNG picture", lambda content: content.startswith(b"\x89PNG\r\n"))
LEAST_WIDTH, TITLE, GAP = 224, 18, 8  # pixels of a panel, of its title's line, and between panels
WARM, COLD = (220, 30, 30), (30, 70, 220)


def draw(explanation: PictureExplanation, image: NDArray[np.uint8]) -> bytes:
    """Draw panels beside each other: the picture, attention rollout where there is one, occlusion.

    Args:
        explanation: the maps.
        image: uint8 [h, w, 3], what the model sees.

    Returns:
        A PNG file. Occlusion: red patches speak for the class, blue ones against it. Rollout: the redder, the more
        attention; the patch with the least has no colour.
    """
    from PIL import Image, ImageDraw

    factor = max(1, -(-LEAST_WIDTH // image.shape[1]))
    picture = Image.fromarray(image).resize(
        (image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST
    )
    panels = [("picture", picture)]
    if explanation.rollout is not None:
        least = min(map(min, explanation.rollout))
        above = tuple(tuple(value - least for value in row) for row in explanation.rollout)
        panels.append(("attention rollout", overlay(picture, above)))
    panels.append(("occlusion", overlay(picture, explanation.occlusion)))
    width, height = picture.size
    sheet = Image.new("RGB", (len(panels) * (width + GAP) - GAP, TITLE + height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (title, panel) in enumerate(panels):
        left = number * (width + GAP)
        pen.text((left + 2, 3), title, fill="black")
        sheet.paste(panel, (left, TITLE))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def overlay(picture: Image.Image, values: Map) -> Image.Image:
    """Draw the picture in grey, with a colour over each patch: red above 0, blue below, stronger further from 0."""
    import numpy as np
    from PIL import Image

    grid = np.array(values)
    strength = np.abs(grid) / (np.abs(grid).max() or 1.0)  # [rows, columns], 0 to 1
    colours = np.where((grid >= 0)[..., None], WARM, COLD).astype(np.uint8)  # [rows, columns, 3]
    above = Image.fromarray(colours).resize(picture.size, Image.Resampling.NEAREST)
    mask = Image.fromarray((200 * strength).round().astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(above, picture.convert("L").convert("RGB"), mask)
