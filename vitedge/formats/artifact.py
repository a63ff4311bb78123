"""The artifact: the folder that is copied to the device, immutable once written.

``manifest.json`` is the authority; ``manifest.sha256`` holds its digest, and the manifest holds the digest of every
other file. Digests detect corruption, not attackers. What a device derives from an artifact (engines, compiled blobs)
lies in :func:`Artifact.cache`, keyed by artifact digest, runtime version and hardware, so read-only media work.
"""

from __future__ import annotations

import io
import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from msgspec import UNSET, UnsetType, field
from msgspec.structs import force_setattr

from vitedge._version import __version__
from vitedge.core.files import FolderKind, new_folder, read_whole, sha256
from vitedge.core.paths import cache_folder
from vitedge.core.schema import Record, decode_json, encode_json
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ArtifactError, UsageError
from vitedge.formats.architecture import ViTConfig
from vitedge.formats.external_data import external_tensor
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.model_folder import ClassLabel, Origin, check_digests
from vitedge.formats.recipe import Recipe
from vitedge.formats.target import Option, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST, MANIFEST_DIGEST = "manifest.json", "manifest.sha256"
ARTIFACT = FolderKind("an artifact", (MANIFEST, MANIFEST_DIGEST))
GOLDEN_INPUTS, GOLDEN_LOGITS, GOLDEN_REFERENCE = "golden/inputs.npy", "golden/logits.npy", "golden/reference.npy"
CANDIDATES = "candidates"  # folder of the candidates that an artifact includes, each an artifact of its own
COPY_AGAIN = "copy the artifact again, or export it again"


class LayerPlan(Record):
    """The precision that one layer was planned to run in, and why."""

    name: str  # the canonical graph's node name: "blocks.3.attn.qkv"
    kind: str  # "linear", "conv", "attention"
    precision: str  # "fp32", "fp16", "int8", …
    macs: int  # multiply-accumulates at batch 1
    reason: str = ""  # why not the precision asked for, where it isn't
    sensitivity: float | None = None  # mean KL to the float logits with only this layer's group quantized


class Calibration(Record):
    """The images that were observed."""

    source: str  # name of the data set, not a path
    count: int
    digest: str  # SHA-256 over the sorted digests of the images
    image_digests: tuple[str, ...]  # 16 hex digits each, sorted; evaluation refuses an overlap by them
    skipped: tuple[str, ...] = ()  # unreadable images that were replaced by the next of the order


class Tolerance(Record):
    """The allowed deviation of golden logits from the exported ones: :func:`vitedge.core.deviation.relative_rms`."""

    allowed: float
    measured: dict[str, float]  # deviation of each sound run at export, by what distinguished it; empty: none possible


class Golden(Record, omit_defaults=True):
    """The self-test: generated pictures, their preprocessed inputs, and the logits.

    The logits are those of :func:`vitedge.data.golden.golden_views`; version 0.1.0 recorded the first view's alone.
    """

    pictures: tuple[str, ...]  # PNG files of the artifact, in the order of the arrays' first axis
    executed_by: str  # what produced golden/logits.npy: "onnxruntime 1.31.1", or an interpreter's name
    deviation: float  # of golden/logits.npy from the float32 reference: largest |difference| / largest |logit|
    tolerance: Tolerance | None = None  # None: version 0.1.0 exported it


class CandidateResult(Record):
    """One candidate: its size, speed and fidelity, or why it failed."""

    precision: str
    variant: str = field(name="form")
    bytes: int | None = None  # None, like the rest: it failed
    deviation: float | None = None
    latency_p50_ms: float | None = None  # None: not measured
    agreement: float | None = None
    divergence: float | None = None  # None: not quantized, so not measured
    top1_drop_pp: float | None = field(name="drop_pts", default=None)  # None: no labels
    holds: bool | None = None  # None: there was no budget
    chosen: bool = False
    folder: str | None = None  # where it lies in the artifact, an artifact of its own; None: it isn't included
    failed: str | None = None  # why its runtime doesn't run it as planned, or at all; then it's left out


class Step(Record):
    """One step of the selection: a number of groups of layers in float, the worst first."""

    quantized: float  # fraction of the multiply-accumulates
    groups_in_float: int
    divergence: float  # mean KL to the float logits, on some of the hold-out pictures
    agreement: float
    latency_ms: float | None = None  # None: the target isn't where it was exported
    chosen: bool = False  # this is the artifact


class Manifest(Record):
    """The contents of ``manifest.json``."""

    SCHEMA_VERSION: ClassVar[int] = 3  # 2: the tolerance of the golden logits; 3: architecture
    schema_version: int = 2
    vitedge_version: str = __version__
    name: str
    target: Target
    precision: str  # asked for
    variant: str = field(name="form")
    batch: int
    graph: str  # file that the runtime opens
    classes: tuple[ClassLabel, ...]
    preprocessing: Preprocessing
    layers: tuple[LayerPlan, ...]
    precision_obtained: dict[str, float]  # fraction of MACs by type, planned; verify counts them in the executed graph
    runtime_options: dict[str, Option]  # set explicitly when opened, and read back
    built_with: dict[str, str]  # versions of what wrote the graph
    model_digest: str
    origin: Origin
    golden: Golden
    candidates: tuple[CandidateResult, ...]
    licence: str | None = None
    recipe: Recipe | None = None  # of a quantized artifact
    calibration: Calibration | None = None
    fidelity: Fidelity | None = None  # of a quantized artifact
    #: Budget of the export, held with 95 % confidence; None: there was none.
    max_top1_drop_pp: float | None = field(name="max_drop_pts", default=None)
    min_top1_agreement_pct: float | None = field(name="min_agreement_pct", default=None)
    steps: tuple[Step, ...] = ()  # from everything quantized to everything in float; where explaining was asked for
    architecture: ViTConfig | UnsetType = UNSET  # where blocks have widths of their own
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of every other file but manifest.sha256

    def __post_init__(self) -> None:
        if self.architecture:  # older versions can still read the others
            force_setattr(self, "schema_version", 3)


@dataclass(frozen=True)
class Artifact:
    """An opened artifact: digests were checked."""

    path: Path
    manifest: Manifest
    because: str = ""  # why this one of several candidates was opened; empty where there is no other

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open an artifact and check every digest.

        Raises:
            UsageError: there is no such folder.
            ArtifactError: not an artifact, a newer schema, a missing or altered file (named).
        """
        folder = Path(path)
        action = f"open the artifact {folder}"
        if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for names that are too long
            raise UsageError(action, "there is no such folder", "run: vitedge export MODEL --target T --out ARTIFACT")
        try:
            data = read_whole(folder / MANIFEST, follow_links=False)
            expected = read_whole(folder / MANIFEST_DIGEST, follow_links=False)
        except OSError as error:
            name = Path(str(error.filename)).name
            raise ArtifactError(action, f"{name} can't be read: {error.strerror}", COPY_AGAIN) from error
        if expected != _digest_line(data):
            raise ArtifactError(action, f"{MANIFEST} isn't what was written ({MANIFEST_DIGEST} differs)", COPY_AGAIN)
        manifest = decode_json(data, Manifest, action=action, file=MANIFEST)
        check_digests(folder, manifest.files, action, ArtifactError, COPY_AGAIN)
        for name in (manifest.graph, GOLDEN_INPUTS, GOLDEN_LOGITS, GOLDEN_REFERENCE, *manifest.golden.pictures):
            if name not in manifest.files:
                raise ArtifactError(action, f"{MANIFEST} doesn't list {name}", COPY_AGAIN)
        _refuse_external_data(folder / manifest.graph, action)
        return cls(folder, manifest)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the manifest, hence of everything."""
        return sha256(encode_json(self.manifest))

    @property
    def graph_path(self) -> Path:
        """The file that the runtime opens."""
        return self.path / self.manifest.graph

    @property
    def graph_files(self) -> dict[str, str]:
        """The runtime's own files (graph and weights) and their digests, without golden data and other candidates."""
        others = ("golden/", f"{CANDIDATES}/")
        return {name: digest for name, digest in self.manifest.files.items() if not name.startswith(others)}

    @property
    def bytes(self) -> int:
        """Size of the runtime's own files."""
        return sum((self.path / name).stat().st_size for name in self.graph_files)

    def array(self, name: str) -> NDArray[Any]:
        """Read one of the golden arrays: inputs uint8 [n, h, w, 3]; logits and reference float32 [views * n, classes].

        Raises:
            ArtifactError: not an array file.
        """
        try:
            with (self.path / name).open("rb") as stream:
                return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
        except (OSError, ValueError, EOFError, MemoryError) as error:
            raise ArtifactError(f"open the artifact {self.path}", f"{name}: {error}", COPY_AGAIN) from error

    def cache(self, runtime_version: str, hardware: str) -> Path:
        """Return the folder for data that this device derives from the artifact; it may be deleted at any time."""
        key = sha256("\0".join((self.digest, runtime_version, hardware)).encode())[:24]
        name = re.sub(r"[^\w.-]", "_", self.manifest.name)[:64]
        return cache_folder() / "artifacts" / f"{name}-{key}"


def _refuse_external_data(graph: Path, action: str) -> None:
    """Refuse an ONNX graph that names other files: they aren't part of the artifact.

    Raises:
        ArtifactError: the name of the tensor that lies elsewhere.
    """
    if graph.stat().st_size == 0:
        return
    with graph.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        view = memoryview(content)
        try:
            name = external_tensor(view)
        except ValueError:  # another format; a damaged ONNX file is refused by its runtime
            name = None
        finally:
            view.release()
    if name is not None:
        reason = f"{graph.name} keeps the tensor '{name}' in another file; an artifact's graph has all of them inside"
        raise ArtifactError(action, reason, "export it again")


def _digest_line(manifest: bytes) -> bytes:
    """Return the content of ``manifest.sha256``, as ``sha256sum --check`` reads it."""
    return f"{sha256(manifest)}  {MANIFEST}\n".encode()


def npy(array: NDArray[Any]) -> bytes:
    """Return ``array`` as the bytes of an ``.npy`` file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def artifact_files(manifest: Manifest, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return all files of an artifact's folder: ``files``, the manifest that lists them, and its digest last.

    Args:
        manifest: its ``files`` are filled in here.
        files: content of every file beside the manifest and its digest.
    """
    from msgspec.structs import replace

    manifest = replace(manifest, files={name: sha256(data) for name, data in sorted(files.items())})
    data = encode_json(manifest)
    return {**files, MANIFEST: data, MANIFEST_DIGEST: _digest_line(data)}


def write_artifact(
    out: str | Path, manifest: Manifest, files: Mapping[str, bytes], *, overwrite: bool, action: str
) -> Artifact:
    """Write an artifact atomically, the manifest last, and open it.

    Args:
        out: destination folder.
        manifest: as for :func:`artifact_files`.
        files: likewise.
        overwrite: permit replacing an existing artifact.
        action: for error texts.

    Raises:
        UsageError, ResourceError: as :func:`vitedge.core.files.new_folder`.
    """
    with new_folder(Path(out), ARTIFACT, overwrite=overwrite, action=action) as folder:
        for name, content in artifact_files(manifest, files).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return Artifact.open(out)
