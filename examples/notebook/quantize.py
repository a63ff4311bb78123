"""The source of the notebook "Quantize a Vision Transformer, and see what it costs".

``python docs/tutorials/_make.py`` makes ``quantize.ipynb`` of it; it runs as a script, too.
"""

# %% [markdown]
# # Quantize a Vision Transformer, and see what it costs
#
# A model goes in; an INT8 artifact, its speed and its accuracy on this machine come out. It takes a minute or two, and
# needs `pip install "vitedge[host,report] @ https://github.com/vitedge/vitedge/archive/main.zip"`.

# %%
from pathlib import Path

from PIL import Image

import vitedge

out = Path("quantized")

# %% [markdown]
# ## A model
#
# `"embedded"` is a small model that vitedge brings along, trained on CIFAR-10. A published one
# (`"hub:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"`), an ONNX file or your own checkpoint can stand there, too:
# [Import](https://github.com/vitedge/vitedge/blob/main/docs/importing.md).

# %%
model = vitedge.import_model("embedded", out=out / "model", overwrite=True)
print([label.name for label in model.record.classes])

# %% [markdown]
# ## Two artifacts
#
# One in float32, and one in INT8. Quantizing observes calibration pictures; the embedded model brings some along, for
# another one name a folder: `data="pictures/"`.

# %%
float32 = vitedge.export(model, target="onnxruntime", precision="fp32", out=out / "fp32", overwrite=True)
int8 = vitedge.export(model, target="onnxruntime", precision="int8", out=out / "int8", overwrite=True)
for artifact in (float32, int8):
    size = sum(path.stat().st_size for path in artifact.path.glob("model.*"))
    print(f"{artifact.manifest.precision}: {size / 1e6:.1f} MB")

# %% [markdown]
# ## One picture
#
# The logits of the two differ a little; what matters is whether the labels do.

# %%
picture = Image.open(int8.path / int8.manifest.golden.pictures[0])
for artifact in (float32, int8):
    with vitedge.open(artifact) as session:
        best = session.classify(picture, top_k=1)[0]
    print(f"{artifact.manifest.precision}: {best.label} {best.probability:.3f}")

# %% [markdown]
# ## How accurate, how fast
#
# `evaluate` answers both in one pass over labelled pictures: here 200 embedded ones, which neither training nor
# calibration saw. `bench` measures them interleaved, so that what the machine does meanwhile touches both.

# %%
accuracy = vitedge.evaluate([float32, int8], limit=200)
latency = vitedge.bench([float32, int8], vitedge.BenchConfig(duration_s=0.5))
for row in latency.rows:
    print(f"{row.subject.precision}: p50 {row.latency.samples.percentile_ns(50) / 1e6:.2f} ms")

# %% [markdown]
# ## Which one to deploy
#
# The report says it, how sure that is, and what it costs.

# %%
vitedge.report([accuracy, latency], out=out / "report.html", overwrite=True)
print(vitedge.report([accuracy, latency], format="md").content.decode())
