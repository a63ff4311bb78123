"""Distillation: a teacher's outputs for the training pictures, kept on disk, and the student's loss from them.

A teacher is any model folder; ONNX Runtime runs it. It runs once on each view of each picture, and its outputs are
kept in float16, so that later epochs, a resumed run, or another student cost nothing. Views are deterministic: view
``v`` of a picture is drawn from (seed, v, picture) and the augmentation, and epoch ``e`` shows view ``e`` mod
``views``. So the teacher gets exactly what the student gets (Beyer et al., 2106.05237: a consistent teacher is better
than one that saw another crop), which outputs for the clean picture can't give; ``views=0`` takes the clean picture all
the same, read from the file at the teacher's own size. Where pictures are mixed, the outputs are mixed as the labels
are.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vitedge.core.files import resource_errors, sha256, write_atomic
from vitedge.core.progress import bars
from vitedge.data import embedded
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError, NotInstalledError, UsageError
from vitedge.formats.model_folder import ClassLabel, Model, class_numbers
from vitedge.training.augment import Mix, augmented_view
from vitedge.training.data import Files, Pixels
from vitedge.training.engine import Processes
from vitedge.training.options import Augmentation, Distillation, as_fields
from vitedge.training.vit import VisionTransformer

BATCH = 64
FEATURES = ("feature", "both")  # lessons of which features are a part
LARGEST = 6e4  # of a logit or feature that float16 keeps


@dataclass(frozen=True)
class Teacher:
    """A model to learn from: uint8 [B, h, w, 3] at its own size -> float32 [B, classes, features, or their sum]."""

    name: str
    digest: str
    preprocessing: Preprocessing
    classes: int  # leading columns of its output: logits of the data's classes
    predict: Callable[[NDArray[np.uint8]], NDArray[np.float32]]

    @classmethod
    def open(cls, how: Distillation, folders: Sequence[str], threads: int, action: str) -> Teacher:
        """Open the teacher of a run on data with these class folders.

        Raises:
            UsageError: no such model, or it doesn't know a class (unless only its features are wanted).
            ModelError: a damaged model, or one whose features can't be found.
            NotInstalledError: no onnxruntime.
        """
        graph, labels, preprocessing, name, digest = _read(how.teacher, action)
        columns = _columns(labels, folders, name, action) if how.lesson != "feature" else []
        outputs = ["logits"] if columns else []
        if how.lesson in FEATURES:
            graph, feature = _with_features(graph, action)
            outputs.append(feature)
        session = _session(graph, threads, action)
        (source,) = session.get_inputs()

        def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            values = session.run(outputs, {source.name: pixels})
            if columns:
                values[0] = values[0][:, columns]
            return np.concatenate(values, axis=1, dtype=np.float32)

        return cls(name, digest, preprocessing, len(columns), predict)


def _read(source: str, action: str) -> tuple[bytes, Sequence[ClassLabel], Preprocessing, str, str]:
    """Return (graph, classes, preprocessing, name, digest) of a model folder, or of the embedded model."""
    if source != "embedded":
        model = Model.open(source)
        record = model.record
        return model.onnx_path.read_bytes(), record.classes, record.preprocessing, record.name, model.digest
    from vitedge.graph import author, mappings

    checkpoint = mappings.read_own(embedded.FOLDER)
    contract = checkpoint.preprocessing
    model = author.author_vit(checkpoint.config, checkpoint.arrays, **author.contract_of(contract))
    graph = model.SerializeToString(deterministic=True)
    return graph, checkpoint.classes or (), contract, checkpoint.name, sha256(graph)


def _columns(labels: Sequence[ClassLabel], folders: Sequence[str], name: str, action: str) -> list[int]:
    """Return the columns of the teacher's logits that belong to the data's classes."""
    ids = class_numbers(labels)
    missing = [folder for folder in folders if folder not in ids]
    if missing:
        raise UsageError(
            action,
            f"the teacher {name} doesn't know {len(missing)} of the classes: {', '.join(missing[:5])}",
            "use another teacher, or its features: --distill feature",
        )
    return [ids[folder] for folder in folders]


def _with_features(graph: bytes, action: str) -> tuple[bytes, str]:
    """Return the graph with one more output: the input of its last linear layer."""
    import onnx

    model = onnx.load_from_string(graph)
    writers = {output: node for node in model.graph.node for output in node.output}
    name = model.graph.output[0].name
    while name in writers and writers[name].op_type not in ("MatMul", "Gemm"):
        name = writers[name].input[0]
    if name not in writers:
        raise ModelError(action, "the teacher doesn't end in a linear layer", "use --distill soft")
    feature = writers[name].input[0]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(feature))
    return model.SerializeToString(deterministic=True), feature


def _session(graph: bytes, threads: int, action: str) -> Any:
    try:
        import onnxruntime  # type: ignore[import-untyped]  # it ships no types
    except ImportError as error:
        raise NotInstalledError.for_extra(action, "onnxruntime", "host") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own kinds
        raise ModelError(action, f"ONNX Runtime refuses the teacher: {error}", "import it again") from error


class TeacherOutputs:
    """A teacher's outputs for every training picture, view by view: from memory, from disk, or computed and kept."""

    def __init__(
        self,
        teacher: Teacher,
        how: Distillation,
        pictures: Pixels | Files,
        digests: Sequence[str],
        views: Callable[[Tensor, int], Tensor],
        key: Sequence[object],
        folder: Path,
        group: Processes,
        action: str,
    ) -> None:
        """Args:
        teacher: the model that is run.
        how: what the student takes from it.
        pictures: the training set.
        digests: hex SHA-256 of their files.
        views: from indices [B] and a view to the uint8 pictures [B, h, w, 3] that the student is shown.
        key: what else the views depend on.
        folder: where outputs are kept.
        group: the processes, which share the work.
        action: for error texts.
        """
        self.teacher, self.how, self.pictures, self.views = teacher, how, pictures, views
        self.folder, self.group, self.action = folder, group, action
        self.after_batch: Callable[[], None] = lambda: None  # called while the teacher runs, after each batch
        kind = "both" if how.lesson == "both" else how.lesson == "feature"
        content = json.dumps([teacher.digest, kind, pictures.images.classes, list(digests), *key])
        self.key = hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:32]
        self.view, self.outputs = -1, np.empty((0, 0), np.float16)

    def of(self, epoch: int, indices: Tensor) -> Tensor:
        """Return float32 [B, classes or features] for these pictures, as they look in this epoch."""
        view = self.teacher_view(epoch)
        if view != self.view:
            self.view, self.outputs = view, self._load(view)
        return torch.from_numpy(self.outputs[indices.numpy()].astype(np.float32))

    def teacher_view(self, epoch: int) -> int:
        """Return the view that the teacher gets in an epoch; the clean picture is always view 0."""
        return epoch % self.how.views if self.how.views else 0

    def student_view(self, epoch: int) -> int:
        """Return the view that the student gets in an epoch."""
        return epoch % self.how.views if self.how.views else epoch

    @property
    def feature_size(self) -> int:
        """The number of the teacher's features; 0 where they aren't used."""
        if self.how.lesson not in FEATURES:
            return 0
        return self.of(0, torch.tensor([0])).shape[1] - self.teacher.classes

    def _load(self, view: int) -> NDArray[np.float16]:
        """Load the outputs for a view from disk, else compute and keep them."""
        path = self.folder / (f"{self.key}-{view}.npy" if self.how.views else f"{self.key}-clean.npy")
        data = self.group.on_first(lambda: path.read_bytes() if path.is_file() else b"")
        try:
            outputs = np.load(io.BytesIO(data)) if data else None
        except (ValueError, EOFError):  # damaged: compute them again
            outputs = None
        if outputs is not None and outputs.dtype == np.float16 and len(outputs) == len(self.pictures):
            return cast(NDArray[np.float16], outputs)
        outputs = self._predict(view)
        if self.group.first:
            buffer = io.BytesIO()
            np.save(buffer, outputs)
            with resource_errors(self.action):
                self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, buffer.getvalue(), self.action)
        return outputs

    def _predict(self, view: int) -> NDArray[np.float16]:
        """Compute the outputs for a view; each process runs the teacher on its part of the pictures."""
        mine = torch.arange(self.group.rank, len(self.pictures), self.group.count)
        outputs: NDArray[np.float32] | None = None
        size = self.teacher.preprocessing.size
        with bars(quiet=not self.group.first) as show:
            for start in range(0, len(mine), BATCH):
                indices = mine[start : start + BATCH]
                pixels = resized(self.views(indices, view), size) if self.how.views else self._clean(indices)
                values = self.teacher.predict(pixels)
                if outputs is None:
                    outputs = np.zeros((len(self.pictures), values.shape[1]), np.float32)
                outputs[indices.numpy()] = values
                show("teacher", start + len(indices), len(mine))
                if start < len(self.pictures) // self.group.count:  # a batch that every process has
                    self.after_batch()
        if outputs is None or not np.isfinite(outputs).all():
            raise ModelError(self.action, "the teacher's outputs are NaN or infinite", "check the teacher's weights")
        return self.group.all_reduce_array(outputs).clip(-LARGEST, LARGEST).astype(np.float16)

    def _clean(self, indices: Tensor) -> NDArray[np.uint8]:
        """Return the pictures after the teacher's own preprocessing, uint8 [B, h, w, 3]."""
        images, places = self.pictures.images, self.pictures.indices
        return np.stack([self.teacher.preprocessing.apply(images.read(places[index])) for index in indices.tolist()])


def student_views(pictures: Pixels | Files, how: Augmentation, seed: int) -> Callable[[Tensor, int], Tensor]:
    """Return a function from indices [B] and a view to uint8 [B, h, w, 3], as the student gets them."""

    def views(indices: Tensor, view: int) -> Tensor:
        (batch,) = pictures.batches([indices])
        x = augmented_view(batch.pixels, how, seed, view, indices)
        return x.round().byte().permute(0, 2, 3, 1)

    return views


def resized(pixels: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize uint8 [B, h, w, 3] to another (height, width): bicubic, antialiased."""
    if tuple(pixels.shape[1:3]) != tuple(size):
        x = pixels.permute(0, 3, 1, 2).float()
        x = functional.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
        pixels = x.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return np.ascontiguousarray(pixels.numpy())


class Student(nn.Module):
    """A model in training: logits of both heads, and its features in the teacher's dimensions where they're compared.

    They're mapped linearly; where both have as many, the map begins as the identity: a student that was made from its
    teacher is near it to begin with.

    Args:
        model: what is trained.
        feature_size: of the teacher's features; 0: they aren't compared.
    """

    def __init__(self, model: VisionTransformer, feature_size: int = 0) -> None:
        super().__init__()
        self.model = model
        self.project = nn.Linear(model.config.pooled_dim, feature_size) if feature_size else None
        if self.project is not None and feature_size == model.config.pooled_dim:
            nn.init.eye_(self.project.weight)
            nn.init.zeros_(self.project.bias)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute [B, 3, H, W] -> logits [B, classes], the second head's [B, classes], features [B, teacher's]."""
        logits, second, pooled = self.model.heads(image)
        return logits, second, None if self.project is None else self.project(pooled)


def distillation_loss(
    how: Distillation, outputs: Tensor, logits: Tensor, second: Tensor | None, features: Tensor | None, mix: Mix | None
) -> Tensor:
    """Return the teacher's part of the loss of each picture, [B].

    - soft: τ² KL(teacher ‖ student), both flattened by the temperature τ (Hinton et al., 1503.02531).
    - hard: cross-entropy with the teacher's choice (Touvron et al., 2012.12877).
    - feature: 1 - cosine between the teacher's features and a linear map of the student's (after Romero et al.,
      1412.6550).
    - both: soft and feature, added up.

    A student with a distillation token learns from the teacher by the second head alone.

    Args:
        how: what the student takes from the teacher.
        outputs: the teacher's logits, or features, or logits and then features [B, …].
        logits: the student's [B, classes].
        second: of its second head, if it has one.
        features: the student's, mapped [B, …].
        mix: how the pictures were mixed.
    """
    if how.lesson == "both":
        classes = logits.shape[1]
        parts = ("soft", outputs[:, :classes]), ("feature", outputs[:, classes:])
        losses = [distillation_loss(replace(how, lesson=each), of, logits, second, features, mix) for each, of in parts]
        return losses[0] + losses[1]
    if how.lesson == "feature":
        assert features is not None
        targets = functional.normalize(outputs, dim=1)
        return 1 - functional.cosine_similarity(features, mix.targets(targets) if mix else targets, dim=1)
    student = logits if second is None else second
    if how.lesson == "hard":
        targets = functional.one_hot(outputs.argmax(1), outputs.shape[1]).float()
        return functional.cross_entropy(student, mix.targets(targets) if mix else targets, reduction="none")
    targets = (outputs / how.temperature).softmax(1)
    targets = mix.targets(targets) if mix else targets
    predicted = (student / how.temperature).log_softmax(1)
    return how.temperature**2 * functional.kl_div(predicted, targets, reduction="none").sum(1)


def view_key(augmentation: Augmentation, size: tuple[int, int], how: Distillation, seed: int, resize: str) -> list[Any]:
    """Return everything beside the picture that its views depend on, for the key of kept outputs."""
    if not how.views:
        return ["clean"]
    drawn = {key: value for key, value in as_fields(augmentation).items() if not key.startswith(("mix", "cut"))}
    return [drawn, list(size), resize, seed]
