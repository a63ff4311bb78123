"""What merging tokens costs for the multiply-accumulates that it saves, against narrower layers and against other ways.

    python benchmarks/shrink_tokens.py DATA --model MODEL [--calibration PICTURES] [--limit N] [--out FILE]

DATA has labelled pictures, one folder a class, which nothing was chosen by; MODEL is a plain ViT's model folder;
CALIBRATION has the pictures to shrink by. For every merging that `vitedge shrink` offers, at equal numbers of tokens:

=======  ==============================================================================================================
merged   as `vitedge shrink` merges: groups of neighbours, the same for every picture, a product with a constant
sized    the same, where attention counts every token as many times as it stands for a patch
matched  ToMe (2210.09461): those tokens of each picture whose keys are most alike, counted likewise
dropped  EViT (2202.07800): those of each picture at which the class token, or all of them, look least become one mean
widths   no token: narrower layers and fewer heads at as many multiply-accumulates, as `vitedge shrink` chooses them
=======  ==============================================================================================================
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from peer_bars import environment, open_model, write
from shrink_accuracy import ASKED, divergence
from torch import Tensor
from torch.nn import functional

from vitedge.data.embedded import open_images
from vitedge.formats.model_folder import Model
from vitedge.graph import mappings
from vitedge.graph.surgery import array, initializers, load, macs
from vitedge.runtimes.interpreter import run_graph
from vitedge.shrinking.choose import choose, places_of, together
from vitedge.shrinking.components import Component, components, truncate
from vitedge.shrinking.costs import costs
from vitedge.shrinking.shrink import shrink
from vitedge.training.vit import Attention, VisionTransformer

#: (tokens [N, T, D], how many patches each stands for [N, T], keys [N, T, d], attention [N, heads, T, T]) -> both anew.
Reduction = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", help="labelled pictures, or the name of embedded ones")
    parser.add_argument("--model", default="embedded", help="or a model folder")
    parser.add_argument("--calibration", default="calibration", help="pictures to shrink by")
    parser.add_argument("--count", type=int, default=300, help="of them")
    parser.add_argument("--limit", type=int, help="of the labelled pictures")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    images, source = open_images(arguments.data, action=ASKED), open_images(arguments.calibration, action=ASKED)
    order = images.order(1)[: arguments.limit]
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        model = open_model(arguments.model, Path(folder))
        graph, module = load(model.onnx_path), torch_module(model)
    apply = model.record.preprocessing.apply
    labels = images.labels([each.folder for each in model.record.classes], action=ASKED)[order]
    pictures = np.stack([apply(images.read(index)) for index in order])
    seen = np.stack([apply(source.read(index)) for index in source.order(0)[: arguments.count]])
    exact, whole = run_graph(graph, pictures, optimized=True), sum(macs(graph).values())
    right = float((exact.argmax(1) == labels).mean())
    print(f"{model.record.name}: {len(pictures)} pictures, {100 * right:.2f} % right; shrunk by {len(seen)}")
    print(f"{'':24s}{'MACs':>8s} {'':10s}{'points':>8s}{'flips':>9s}{'mean KL':>10s}", flush=True)
    rows = []
    for (name, tokens), way, made in everything(graph, seen, module.config.prefix_tokens):
        if callable(made):
            logits = reduced_logits(model, module, pictures, int(name.split(".")[1]), made)
        else:
            logits, left = run_graph(made, pictures, optimized=True), sum(macs(made).values()) / whole
        rows.append(
            {
                "place": name,
                "tokens": tokens,
                "way": way,
                "macs": left,
                "points": 100 * (right - float((logits.argmax(1) == labels).mean())),
                "flips_percent": 100 * float((logits.argmax(1) != exact.argmax(1)).mean()),
                "mean_kl": divergence(exact, logits),
            }
        )
        row = "{place:18s}{tokens:6d}{macs:8.1%} {way:10s}{points:8.2f}{flips_percent:8.2f}%{mean_kl:10.5f}"
        print(row.format_map(rows[-1]), flush=True)
    if arguments.out is not None:
        details = {"model": model.record.name, "data": arguments.data, "pictures": len(pictures)}
        details |= {"top1_percent": 100 * right, "shrunk_by": len(seen), "rows": rows}
        write(arguments.out, environment(["onnxruntime", "numpy", "torch"], 0), [], details)
    return 0


def everything(
    graph: onnx.ModelProto, seen: NDArray[np.uint8], prefix: int
) -> Iterator[tuple[tuple[str, int], str, onnx.ModelProto | Reduction]]:
    """((place, tokens), way, what computes it) of all."""
    found = components(graph)
    narrowed, whole = [each for each in found if each.kind != "tokens"], sum(macs(graph).values())
    errors = costs(graph, seen, names=[each.name for each in narrowed])
    places = places_of(narrowed, {each.name: savings(graph, each) for each in narrowed}, errors)
    for component in (each for each in found if each.kind == "tokens"):
        for tokens in component.offered[-2::-1]:
            merging = component.name, tokens
            merged = shrink(graph, {component.name: tokens}, seen).model
            yield merging, "merged", merged
            weight = initializers(merged)[component.name.replace("tokens", "merge.weight")]
            yield merging, "sized", sized(array(weight))
            yield merging, "matched", matched(tokens, prefix)
            yield merging, "dropped", dropped(tokens, prefix)
            chosen = choose(places, whole - sum(macs(merged).values()))
            if chosen is not None:
                yield merging, "widths", shrink(graph, together(chosen).widths, seen).model


def savings(graph: onnx.ModelProto, component: Component) -> dict[int, float]:
    """Multiply-accumulates that each narrower width saves; in proportion to the narrowest one's."""
    whole, least = component.width, component.offered[0]
    most = sum(macs(graph).values()) - sum(macs(truncate(graph, {component.name: least})).values())
    return {width: most * (whole - width) / (whole - least) for width in component.offered[:-1]}


def torch_module(model: Model) -> VisionTransformer:
    checkpoint = mappings.read_own(model.path)
    module = VisionTransformer(checkpoint.config, folded=True).eval()
    module.load_state_dict({name: torch.tensor(np.float32(values)) for name, values in checkpoint.arrays.items()})
    return module


@torch.inference_mode()
def reduced_logits(
    model: Model, module: VisionTransformer, pictures: NDArray[np.uint8], block: int, reduction: Reduction
) -> NDArray[np.float32]:
    """Logits where tokens are reduced behind a block; attention counts a token as often as it stands for patches."""
    contract, prefix, logits = model.record.preprocessing, module.config.prefix_tokens, []
    for start in range(0, len(pictures), 100):
        scaled = pictures[start : start + 100] * contract.rescale
        normalised = torch.tensor(np.float32((scaled - np.array(contract.mean)) / np.array(contract.std)))
        x = module.norm_pre(module.tokens(normalised.permute(0, 3, 1, 2)))
        sizes = torch.ones(x.shape[:2])
        for index, each in enumerate(module.blocks):
            if each.attn is None or each.mlp is None:
                raise SystemExit("shrink a whole model: one that has all of its branches")
            y, keys, attention = attend(each.attn, each.norm1(x), sizes)
            x = x + each.ls1(y)
            x = x + each.ls2(each.mlp(each.norm2(x)))
            if index == block:
                x, sizes = reduction(x, sizes, keys, attention)
        x, weights = module.norm(x), sizes[:, prefix:, None]
        mean = (x[:, prefix:] * weights).sum(1) / weights.sum(1)
        pooled = {"token": x[:, 0], "avg": mean, "token_avg": torch.cat([x[:, 0], mean], 1)}[module.config.pool]
        logits.append(module.head(module.fc_norm(pooled)).numpy())
    return np.concatenate(logits)


def attend(layer: Attention, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What an attention makes of tokens, the mean of its heads' keys [N, T, d], and its weights [N, heads, T, T]."""
    q, k, v = (part.unflatten(2, (layer.heads, -1)).transpose(1, 2) for part in layer.qkv(x).split(layer.sizes, dim=2))
    weights = (layer.q_norm(q) @ layer.k_norm(k).mT * layer.scale + sizes.log()[:, None, None]).softmax(-1)
    return layer.proj((weights @ v).transpose(1, 2).flatten(2)), k.mean(1), weights


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Rows [N, k, D] of [N, T, D] by index [N, k]; of [N, T] elements."""
    return x.gather(1, index) if x.ndim == 2 else x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def sized(matrix: NDArray[np.float32]) -> Reduction:
    """Groups of patch tokens that are the same for every picture, by their matrix of all tokens."""
    product = torch.tensor(matrix)

    def reduce(x: Tensor, sizes: Tensor, keys: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        return product @ x, ((product != 0).float() @ sizes[..., None])[..., 0]

    return reduce


def matched(tokens: int, prefix: int) -> Reduction:
    """Bipartite soft matching on keys, of every second token with one of the others, repeated while more must go."""

    def once(x: Tensor, sizes: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        near = functional.normalize(keys[:, prefix:], dim=-1)
        values, to = (near[:, ::2] @ near[:, 1::2].mT).max(-1)
        going = min(x.shape[1] - tokens, values.shape[1])
        order = values.argsort(-1, descending=True)
        gone, stays = order[:, :going], order[:, going:].sort(-1).values
        target = rows_of(to, gone)
        weighted = torch.cat([x * sizes[..., None], sizes[..., None]], -1)[:, prefix:]
        others = weighted[:, 1::2].scatter_add(
            1, target[..., None].expand(-1, -1, weighted.shape[-1]), rows_of(weighted[:, ::2], gone)
        )
        new = torch.cat([rows_of(weighted[:, ::2], stays), others], 1)
        keys = torch.cat([keys[:, :prefix], rows_of(keys[:, prefix::2], stays), keys[:, prefix + 1 :: 2]], 1)
        x = torch.cat([x[:, :prefix], new[..., :-1] / new[..., -1:]], 1)
        return x, torch.cat([sizes[:, :prefix], new[..., -1]], 1), keys

    def reduce(x: Tensor, sizes: Tensor, keys: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        while x.shape[1] > tokens:
            x, sizes, keys = once(x, sizes, keys)
        return x, sizes

    return reduce


def dropped(tokens: int, prefix: int) -> Reduction:
    """Those that are looked at least go; the mean of them, by how much they are looked at, stays as one token."""

    def reduce(x: Tensor, sizes: Tensor, keys: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        looked = attention.mean(1)
        looked = looked[:, 0, prefix:] if prefix else looked.mean(1)
        order = looked.argsort(-1, descending=True)
        stays, gone = order[:, : tokens - prefix - 1].sort(-1).values, order[:, tokens - prefix - 1 :]
        weights = functional.normalize(rows_of(looked, gone), p=1, dim=-1)
        fused = (rows_of(x[:, prefix:], gone) * weights[..., None]).sum(1, keepdim=True)
        x = torch.cat([x[:, :prefix], rows_of(x[:, prefix:], stays), fused], 1)
        return x, torch.ones(x.shape[:2])

    return reduce


if __name__ == "__main__":
    sys.exit(main())
