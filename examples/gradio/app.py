"""A page to try a model on pictures: ``python examples/gradio/app.py int8/``."""

from __future__ import annotations

import sys

import gradio
from PIL import Image

import vitedge


def page(session: vitedge.Session) -> gradio.Interface:
    """The page of an opened artifact."""

    async def classify(picture: Image.Image | None) -> dict[str, float]:
        if picture is None:
            raise gradio.Error("Choose a picture first.")
        return {answer.label: answer.probability for answer in await session.classify_async(picture)}

    runs = session.info
    return gradio.Interface(
        classify,
        inputs=gradio.Image(type="pil", label="Picture"),
        outputs=gradio.Label(label="Classes"),
        title=session.artifact.manifest.name,
        description=f"{session.artifact.manifest.precision} on {runs['runtime']} {runs['version']}, {runs['device']}",
        flagging_mode="never",
        concurrency_limit=session.slots,
        api_name="classify",
    )


if __name__ == "__main__":
    with vitedge.open(sys.argv[1]) as opened:
        page(opened).launch()
