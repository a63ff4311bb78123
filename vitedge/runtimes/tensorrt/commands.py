"""Command lines of NVIDIA's own tools for the same graph: trtexec builds and times it, Polygraphy compares its logits.

trtexec's options are those of TensorRT 10.3 and newer; since 11 every network is strongly typed and ``--stronglyTyped``
is accepted and does nothing. trtexec comes with TensorRT's Debian packages and archives (on a Jetson in
/usr/src/tensorrt/bin), not with its wheels; Polygraphy comes from pip.
"""

from __future__ import annotations

import json
import shlex

import numpy as np

from vitedge.formats.artifact import GOLDEN_INPUTS, GOLDEN_LOGITS, Artifact
from vitedge.runtimes._nvidia.engine import BuildOptions
from vitedge.runtimes._nvidia.session import build_options

#: The graph's input, as every artifact names it.
INPUT = "image"
INPUTS = "inputs.json"


def commands(artifact: Artifact) -> list[tuple[str, str]]:
    """Return each command's purpose, and the command, for a shell.

    Raises:
        UsageError: an option of the manifest that TensorRT hasn't.
    """
    options = build_options(artifact.manifest.runtime_options, f"write command lines for {artifact.path}")
    timed = "build the engine, and time it: `vitedge bench --like trtexec10`, or trtexec11 from TensorRT 11 on"
    lines = [(timed, _trtexec(artifact, options))]
    if artifact.manifest.golden.pictures:
        lines += [
            ("the golden pictures, for Polygraphy", _inputs(artifact)),
            ("compare TensorRT's logits of them with ONNX Runtime's", _polygraphy(artifact, options)),
        ]
    return lines


def _trtexec(artifact: Artifact, options: BuildOptions) -> str:
    words = ["trtexec", f"--onnx={artifact.graph_path}", "--stronglyTyped"]
    words += [] if options.tf32 else ["--noTF32"]
    if options.workspace_mb is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_mb}")
    if options.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.aux_streams is not None:
        words.append(f"--maxAuxStreams={options.aux_streams}")
    name = artifact.path.resolve().name
    return shlex.join([*words, f"--timingCacheFile={name}.cache", f"--saveEngine={name}.plan"])


def _inputs(artifact: Artifact) -> str:
    """Return golden pictures as the graph takes them, in the only format that Polygraphy's command line reads."""
    shape = (artifact.manifest.batch, *artifact.array(GOLDEN_INPUTS).shape[1:])
    pictures = f"numpy.resize(numpy.load({json.dumps(str(artifact.path / GOLDEN_INPUTS))}), {shape})"
    save = f"save_json([{{{json.dumps(INPUT)}: {pictures}}}], {json.dumps(INPUTS)})"
    code = f"import numpy; from polygraphy.json import save_json; {save}"
    return shlex.join(["python", "-c", code])


def _polygraphy(artifact: Artifact, options: BuildOptions) -> str:
    words = ["polygraphy", "run", str(artifact.graph_path), "--trt", "--strongly-typed", "--onnxrt"]
    words += ["--tf32"] if options.tf32 else []
    if options.workspace_mb is not None:
        words += ["--pool-limit", f"workspace:{options.workspace_mb}M"]
    if options.optimization_level is not None:
        words += ["--builder-optimization-level", str(options.optimization_level)]
    words += ["--load-inputs", INPUTS, "--check-error-stat", "mean", "--rtol", "0"]
    return shlex.join([*words, "--atol", f"{_allowed(artifact):.3g}"])


def _allowed(artifact: Artifact) -> float:
    """Return the allowed mean deviation of logits from the exported ones; it never exceeds the root mean square."""
    tolerance, logits = artifact.manifest.golden.tolerance, artifact.array(GOLDEN_LOGITS).astype(np.float64)
    centred = logits - logits.mean(axis=1, keepdims=True) if logits.shape[1] > 1 else logits
    return float(np.sqrt(np.mean(centred**2))) * (0.05 if tolerance is None else tolerance.allowed)
