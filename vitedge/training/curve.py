"""Draw a run's curve."""

from __future__ import annotations

import io
from collections.abc import Sequence


def curve(history: Sequence[dict[str, float]]) -> bytes:
    """Draw cross-entropy and held-out top-1 over the epochs as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["train_loss"] for row in history], label="training (smoothed, augmented)")
    left.plot(epochs, [row["held_out_loss"] for row in history], label="held out")
    left.set(xlabel="epoch", ylabel="cross-entropy")
    left.legend(loc="upper right", fontsize="small")
    right.plot(epochs, [row["held_out_top1_percent"] for row in history])
    right.set(xlabel="epoch", ylabel="held-out top-1 (%)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()
