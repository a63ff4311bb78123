"""The source of the tutorial "Build a Vision Transformer, understand it, ship it".

Cells begin with "# %%"; ``python docs/tutorials/_make.py`` makes the page and the notebook of them. As a script:

    python docs/tutorials/build_a_vit.py
    python docs/tutorials/build_a_vit.py --data cifar10/train.tar.gz --steps 1200
"""

# %% [markdown]
# # Build a Vision Transformer, understand it, ship it
#
# You start with one photograph and end with a quantized classifier that watches a film. On the way you write a Vision
# Transformer in about 60 lines of torch, check each step against the one that vitedge trains, and look at what it has
# learned. You need Python and some torch. [The script](build_a_vit.py) is what this page shows, piece by piece; put
# [vit.py](vit.py), the network, beside it:
#
# <!-- not run: the tests run the script with two training steps -->
# ```
# python3 -m venv .venv && . .venv/bin/activate
# pip install "vitedge[train,stream] @ https://github.com/vitedge/vitedge/archive/main.zip"
# python build_a_vit.py
# ```
#
# Or read and run [the notebook](build-a-vit.ipynb), which is made from the same source. The pictures below were made
# with CIFAR-10's training pictures: `--data cifar10/train.tar.gz --steps 1200`.

# %%
import argparse
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn.functional import cosine_similarity, cross_entropy, linear

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
sys.path.insert(0, str(HERE))  # vit.py lies there

from vit import ViT, small_vit  # noqa: E402

from vitedge.data.embedded import open_images  # noqa: E402
from vitedge.formats.architecture import PatchStem, ViTConfig  # noqa: E402
from vitedge.training.vit import VisionTransformer  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="calibration", help="class folders; the default are 512 embedded pictures")
parser.add_argument("--steps", type=int, default=200, help="training steps")
parser.add_argument("--out", type=Path, default=Path("tutorial"), help="a folder for what is made")
settings, _ = parser.parse_known_args()
out = settings.out
out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)

# %% [markdown]
# ## 1. One photograph becomes 196 patches
#
# The picture comes from CIFAR-10 (A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009),
# enlarged to 224×224 pixels, the usual input of a Vision Transformer. A patch is a square of 16×16 pixels. 224 / 16
# = 14, so there are 14 × 14 = 196 patches, and each has 16 · 16 · 3 = 768 numbers.
#
# ![A photograph under a grid of 14 × 14 squares](patches.png)

# %%
photographs = open_images("display", action="read a photograph")
photograph = photographs.read(60).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
pixels = torch.from_numpy(np.array(photograph)).float().permute(2, 0, 1)[None] / 255  # [1, 3, 224, 224]

patches = pixels.unfold(2, 16, 16).unfold(3, 16, 16)  # [1, 3, 14, 14, 16, 16]
patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # [1, 196, 768]
assert patches.shape == (1, 196, 768)

drawing = photograph.copy()
pen = ImageDraw.Draw(drawing)
for place in range(0, 224, 16):
    pen.line([(place, 0), (place, 224)], fill="white")
    pen.line([(0, place), (224, place)], fill="white")
drawing.save(out / "patches.png")

# %% [markdown]
# ## 2. A patch becomes a token
#
# One linear layer projects the 768 numbers of each patch to D = 192 numbers: the *patch embedding*. A vector like
# this is called a *token*. All patches share the layer. A convolution whose kernel is as large as its stride
# computes the same, which is how `vit.py` and vitedge write it.
#
# To check each step, two networks get the same weights: the one of `vit.py`, and `vitedge.training.vit`. The names
# of their parameters are the same, so `load_state_dict` copies them.

# %%
ours = ViT(size=224, patch=16, dim=192, depth=2, heads=3, classes=10).eval()
config = ViTConfig(
    image_size=(224, 224),
    stem=PatchStem(patch_size=16),
    embed_dim=192,
    depth=2,
    num_heads=3,
    mlp_hidden=768,
    num_classes=10,
)
theirs = VisionTransformer(config).eval()
theirs.load_state_dict(ours.state_dict())


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    """Stop where two results differ by more than rounding."""
    assert a.shape == b.shape, (a.shape, b.shape)
    assert torch.allclose(a, b, atol=1e-5), (a - b).abs().max()


torch.set_grad_enabled(False)
projection = ours.patch_embed.proj
by_hand = linear(patches, projection.weight.flatten(1), projection.bias)  # [1, 196, 768] -> [1, 196, 192]
same(by_hand, theirs.patch_embed(pixels))

# %% [markdown]
# ## 3. The class token and the positions
#
# One more token is put in front, the *class token*. It has no pixels: it is learned, and at the end the answer is read
# from it. That makes 1 + 196 = 197 tokens.
#
# Attention doesn't know where a token stands; a shuffled picture would give the same answer. So a learned vector is
# added to every token, one for each place: the *position embedding*.

# %%
tokens = torch.cat([ours.cls_token, by_hand], dim=1) + ours.pos_embed  # [1, 197, 192]
same(tokens, theirs.tokens(pixels))

# %% [markdown]
# ## 4. One head of attention, by hand
#
# Attention lets every token read from the others. Three linear layers make three vectors of each token: a *query*
# (what am I looking for?), a *key* (what do I offer?) and a *value* (what do I say?). The product of a query with
# every key is a row of scores. Softmax makes of the scores positive weights whose sum is 1, and the result is the
# mean of the values with these weights:
#
# softmax(Q Kᵀ / √d) V
#
# The division by √d keeps the scores at about the same size, however many channels d a head has. With large scores,
# softmax would choose one single token, and its gradient would vanish.

# %%
block = ours.blocks[0]
x = block.norm1(tokens)  # [1, 197, 192]; what LayerNorm does is in step 6
q, k, v = block.attn.qkv(x)[0].chunk(3, dim=1)  # each [197, 192]
d = 192 // 3  # three heads share the 192 channels
scores = q[:, :d] @ k[:, :d].T / math.sqrt(d)  # [197, 197]
weights = scores.softmax(dim=1)
assert torch.allclose(weights.sum(dim=1), torch.ones(197), atol=1e-5)
head = weights @ v[:, :d]  # [197, 64]

# %% [markdown]
# ## 5. Several heads
#
# One head mixes tokens in one way. Three heads have 64 channels each and mix in three ways: one may look at
# neighbours, another at the same colour. Their results stand side by side again, 3 · 64 = 192, and one more linear
# layer mixes them.

# %%
heads = []
for first in range(0, 192, d):
    part = slice(first, first + d)
    heads.append((q[:, part] @ k[:, part].T / math.sqrt(d)).softmax(dim=1) @ v[:, part])
assert torch.equal(heads[0], head)
attended = block.attn.proj(torch.cat(heads, dim=1))[None]  # [1, 197, 192]
same(attended, theirs.blocks[0].attn(x))

# %% [markdown]
# ## 6. LayerNorm, residuals and the MLP: one block
#
# *LayerNorm* brings the 192 numbers of each token to mean 0 and variance 1, then a learned factor and offset follow. It
# keeps the sizes of numbers steady through many layers.
#
# A *residual connection* adds what a layer computes to what went into it: x + attention(norm(x)). A layer has to learn
# only what it changes, and gradients reach the first block undiminished.
#
# The *MLP* (two linear layers, 192 → 768 → 192, with a GELU between them) works on each token by itself. Attention
# moves information between tokens; the MLP thinks about each one.

# %%
mean, variance = tokens.mean(-1, keepdim=True), tokens.var(-1, keepdim=True, unbiased=False)
same((tokens - mean) / (variance + 1e-6).sqrt() * block.norm1.weight + block.norm1.bias, x)

after_attention = tokens + attended
after_mlp = after_attention + block.mlp(block.norm2(after_attention))  # [1, 197, 192]
same(after_mlp, theirs.blocks[0](tokens))

# %% [markdown]
# ## 7. The encoder and the answer
#
# The encoder is such blocks, one after the other; here two, in ViT-Tiny twelve. After a last LayerNorm the class token
# alone goes through a linear layer, the *classification head*: 192 numbers become one *logit* for each of the ten
# classes. Softmax makes probabilities of them.

# %%
encoded = ours.norm(ours.blocks[1](after_mlp))  # [1, 197, 192]
logits = ours.head(encoded[:, 0])  # [1, 10]
same(logits, theirs(pixels))
same(logits, ours(pixels))
print("probabilities without training:", logits.softmax(dim=1)[0].numpy().round(2))

# %% [markdown]
# ## 8. Train it
#
# CIFAR-10 pictures have 32×32 pixels, so the network that is trained has patches of 4×4: 8 × 8 = 64 tokens and the
# class token, 96 channels, four blocks. Every step takes 128 pictures, mirrors half of them, and follows the
# gradient of the cross-entropy with AdamW. The learning rate rises for a while and then falls to 0.
#
# CIFAR-10's training pictures, as class folders or an archive of them, go in with `--data cifar10/train.tar.gz
# --steps 1200`: eight minutes on two cores, and 61 % of the held-out pictures are called by their right name, where
# guessing gives a tenth. Without `--data`, 512 embedded pictures are enough to see that the network learns, not to
# learn well. `vitedge train` adds augmentation and better optimisers.

# %%
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])


def read(source: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Read pictures as normalised float32 [count, 3, 32, 32], their classes, and the names of all classes."""
    images = open_images(source, action="read pictures")
    names = sorted({str(record.folder) for record in images.records})
    labels = torch.tensor([names.index(str(record.folder)) for record in images.records])
    arrays = np.stack([np.asarray(images.read(index).convert("RGB")) for index in range(len(images))])
    return ((torch.from_numpy(arrays) / 255 - MEAN) / STD).permute(0, 3, 1, 2), labels, names


images, labels, names = read(settings.data)
order = torch.randperm(len(images))
held_out, seen = order[: len(order) // 10], order[len(order) // 10 :]
torch.set_grad_enabled(True)
model = small_vit()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=settings.steps + 1)
for step in range(settings.steps):
    chosen = seen[torch.randint(len(seen), (128,))]
    batch = images[chosen]
    batch = torch.where(torch.rand(128, 1, 1, 1) < 0.5, batch.flip(3), batch)
    loss = cross_entropy(model(batch), labels[chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if step % 100 == 0 or step == settings.steps - 1:
        print(f"step {step}: loss {loss.item():.3f}")
model.eval()
torch.set_grad_enabled(False)
held_out = held_out[:1000]
right = (model(images[held_out]).argmax(dim=1) == labels[held_out]).float().mean()
print(f"{100 * right:.1f} % of {len(held_out)} pictures that it has never seen are right")

# %% [markdown]
# ## 9. What did it learn about places?
#
# Nobody told the network that patch 9 lies below patch 1. Compare the position embedding of each place with all others
# (cosine similarity). In each of the 8 × 8 small squares, the bright spot is the place itself, and what is around it
# shows which places the network takes for similar.
#
# ![8 × 8 maps, each bright at its own place](positions.png)

# %%
places = model.pos_embed[0, 1:]  # [64, 96], without the class token
similarity = cosine_similarity(places[:, None], places[None], dim=2)  # [64, 64]
maps = similarity.reshape(8, 8, 8, 8).permute(0, 2, 1, 3)  # rows of maps, rows of one map, columns of both
maps = ((maps - maps.min()) / (maps.max() - maps.min()) * 255).reshape(64, 64)
Image.fromarray(maps.numpy().astype(np.uint8)).resize((448, 448), Image.Resampling.NEAREST).save(out / "positions.png")

# %% [markdown]
# ## 10. Ship it: import, quantize, measure
#
# From here on nothing needs torch. `vitedge import --factory` takes your module by its name, exports it, recognises the
# Vision Transformer in it, and compares the logits. `--labels` names the classes.

# %%


def vitedge(*words: object) -> None:
    """Run a command, as you would type it."""
    print("$ vitedge", *words)
    subprocess.run([sys.executable, "-m", "vitedge", *map(str, words)], check=True, cwd=HERE)


out = out.resolve()
torch.save(model.state_dict(), out / "vit.pth")
(out / "names.txt").write_text("\n".join(names))
contract = ["--size", 32, "--mean", ",".join(f"{value:.4f}" for value in MEAN.tolist())]
contract += ["--std", ",".join(f"{value:.4f}" for value in STD.tolist())]
source = ["--factory", "vit:small_vit", "--weights", out / "vit.pth"]
vitedge("import", *source, *contract, "--labels", out / "names.txt", "--out", out / "model", "--overwrite")

# %% [markdown]
# INT8 numbers are a quarter as large as float32, and many processors multiply them faster. Calibration pictures show
# which ranges the numbers have. `bench` measures both artifacts, interleaved.
# With labelled pictures that were not used for training, `vitedge eval` says what INT8 costs in accuracy.

# %%
calibration = ["--data", settings.data, "--num-samples", 128]
for precision in ("fp32", "int8"):
    extra = calibration if precision == "int8" else []
    target = ["--target", "onnxruntime", "--precision", precision]
    vitedge("export", out / "model", *target, *extra, "--out", out / precision, "--overwrite")
vitedge("bench", out / "fp32", out / "int8", "--duration", 0.5, "--warmup", 0.2)

# %% [markdown]
# ## 11. Where does it look?
#
# `vitedge explain-picture` draws two maps. *Attention rollout* (Abnar and Zuidema, 2005.00928) multiplies the
# attention of all blocks, where half of each is the residual connection. It shows from which patches the class token
# got its content. *Occlusion* hides one patch after another, and shows by how much the probability of the class falls.
# Red patches raise the probability, and blue ones lower it.
#
# Rollout shows where the network reads, and occlusion shows which patches decide. The two may differ.
#
# ![A photograph, its attention rollout and its occlusion map](attention.png)

# %%
photographs.read(60).save(out / "photograph.png")
vitedge("explain-picture", out / "model", out / "photograph.png", "--out", out / "attention.png", "--overwrite")

# %% [markdown]
# An artifact is explained by the runtime that it ships with, by occlusion alone:

# %%
vitedge("explain-picture", out / "int8", out / "photograph.png")

# %% [markdown]
# ## 12. Watch a film
#
# `vitedge stream` takes cameras, addresses and files. This makes a short film of photographs, and classifies its
# frames. Without `--headless`, a live page shows the film with its labels.

# %%
import av  # noqa: E402

with av.open(str(out / "film.avi"), "w") as film:
    track = film.add_stream("mjpeg", rate=5)
    track.width, track.height, track.pix_fmt = 224, 224, "yuvj420p"
    for number in range(0, 500, 50):
        shown = photographs.read(number).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        film.mux(track.encode(av.VideoFrame.from_image(shown)))
    film.mux(track.encode())
vitedge("stream", out / "int8", out / "film.avi", "--headless", "--policy", "every")

# %% [markdown]
# ## Where to go on
#
# - [Train](../training.md) with augmentation and distillation; [import](../importing.md) published weights.
# - [Quantize](../quantization.md): accuracy budgets, calibration, and the precision of each layer.
# - [Streams and cameras](../stream.md), a [Raspberry Pi](../raspberry-pi.md), a [Jetson](../jetson.md).
