"""No benchmark: one model whose weights are the mean of several models' weights.

    python benchmarks/soup.py MODEL MODEL [...] --out SOUP

All of them are model folders of one architecture that grew from the same weights: the mean of such models is often more
accurate than each of them (Wortsman et al., Model soups, 2203.05482). What it's worth only held-out pictures tell.
"""

from __future__ import annotations

import numpy as np
from ensemble import alike
from msgspec.structs import replace
from safetensors.numpy import load_file, save

from vitedge.formats.model_folder import MODEL_ONNX, MODEL_WEIGHTS, write_model
from vitedge.graph.author import author_vit
from vitedge.graph.surgery import to_bytes


def main() -> None:
    models, out = alike(__doc__, lambda record: record.architecture, "the architecture")
    first = models[0].record
    weights = [load_file(model.path / MODEL_WEIGHTS) for model in models]
    mean = {name: np.mean([one[name] for one in weights], axis=0, dtype=np.float64) for name in weights[0]}
    shipped = {name: value.astype(np.float16) for name, value in mean.items()}
    assert first.architecture is not None
    graph = author_vit(
        first.architecture,
        {name: value.astype(np.float32) for name, value in shipped.items()},
        mean=first.preprocessing.mean,
        std=first.preprocessing.std,
        rescale=first.preprocessing.rescale,
        name=first.name,
    )
    record = replace(first, files={}, accuracy=None, training=None)
    write_model(out, record, {MODEL_WEIGHTS: save(shipped), MODEL_ONNX: to_bytes(graph)})


if __name__ == "__main__":
    main()
