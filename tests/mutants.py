"""Damaged files of every kind that vitedge reads, and what becomes of each: ``python -m tests.mutants --count 2000``.

Every kind has sound files, a mutation by seed, and a reading whose value says what was understood. All mutants of a
kind are read in one child process. A crash or a hang there is told with the seed that caused it, and the next child
goes on after it.
"""

from __future__ import annotations

import argparse
import atexit
import collections
import contextlib
import functools
import hashlib
import io
import math
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitedge.core.isolation import ChildError, run_isolated, tell
from vitedge.errors import UsageError, VitedgeError

HANG_S = 20.0  # for one mutant
MEMORY_MB = 1000  # above the sound case
REFUSED, EQUAL, PARTIAL, OTHER, DAMAGED = "refused", "equal", "known to be cut", "other", "taken for sound"
CRASHED = "crashed in a child"  # where vitedge reads the kind in a child process, too, and refuses it


COLUMNS = (REFUSED, EQUAL, PARTIAL, OTHER, CRASHED)


class Kind(NamedTuple):
    """One kind of input."""

    name: str
    make: Callable[[Path], None]  # write sound files into this empty folder
    read: Callable[[Path], Any]  # what they say; refuses with a VitedgeError
    checked: bool  # whether damage is told; a file without a checksum can say something else, and be valid
    is_part: Callable[[Any, Any], bool] = lambda sound, read: False  # whether less was read, and the reader knows
    head: int | None = None  # most mutations lie among so many first bytes
    contained: bool = False  # read in a child process by vitedge, too: a crash there is a refusal


def mutate(data: bytes, draw: random.Random, head: int | None = None) -> bytes:
    """Flip, remove, double, overwrite or insert some bytes, or cut the rest off; mostly among the first ``head``."""
    for _ in range(draw.choice([1, 1, 2, 8])):
        end = len(data) if head is None or draw.random() < 0.2 else min(head, len(data))
        first = draw.randrange(max(1, end))
        last = min(len(data), first + draw.choice([1, 1, 4, 64]))
        piece = data[first:last]
        kind = draw.randrange(6)
        if kind == 0:
            piece = bytes(byte ^ (1 << draw.randrange(8)) for byte in piece)
        elif kind == 1:
            piece = b""
        elif kind == 2:
            piece *= 2
        elif kind == 3:
            piece = bytes(draw.choice([0, 1, 127, 128, 255]) for _ in piece)
        elif kind == 4:
            piece = bytes(draw.choice(b'0123456789"{}[],.:-eE abcXYZ') for _ in piece)
        elif draw.random() < 0.3:
            piece, last = b"", len(data)
        data = data[:first] + piece + data[last:]
    return data


def damage(folder: Path, seed: int, head: int | None) -> None:
    """Mutate one file of a folder; one in twenty is emptied, removed, or made a link to a copy instead."""
    draw = random.Random(seed)
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    way = draw.randrange(60)
    if way == 0:
        path.write_bytes(b"")
    elif way == 1:
        path.unlink()
    elif way == 2:
        twin = folder.parent / "twin"
        twin.write_bytes(mutate(path.read_bytes(), draw))
        path.unlink()
        path.symlink_to(twin)
    else:
        path.write_bytes(mutate(path.read_bytes(), draw, head))


def serve(name: str, seeds: Sequence[int], places: tuple[str, str]) -> int:
    """In the child: say what becomes of each mutant, and return by how many MB memory grew."""
    kind, (source, work) = _kind(name), map(Path, places)
    before, memory = kind.read(source), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        tell(f"{seed} begins")
        folder = work / "mutant"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        damage(folder, seed, kind.head)
        tell(f"{seed} {outcome(kind, before, folder)}")
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) >> 10


def _kind(name: str) -> Kind:
    return WATCHED if name == WATCHED.name else KINDS[name]


def outcome(kind: Kind, before: Any, folder: Path) -> str:
    try:
        after = kind.read(folder)
    except VitedgeError as error:
        return REFUSED if error.exit_code in (2, 3) and error.hint else f"traceback: exit code {error.exit_code}"
    except Exception:
        return "traceback: " + traceback.format_exc()[-600:].replace("\n", " | ")
    if after == before:
        return EQUAL
    if not kind.checked:
        return OTHER
    return PARTIAL if kind.is_part(before, after) else DAMAGED


class Outcomes(NamedTuple):
    """What became of one kind's mutants."""

    counts: dict[str, int]
    failures: list[str]  # tracebacks, signals, hangs, and damage that was taken for sound, with their seeds
    memory_mb: int


def run(name: str, seeds: Sequence[int]) -> Outcomes:
    """Read the mutants of one kind.

    Args:
        name: of :data:`KINDS`.
        seeds: one for each mutant.
    """
    counts: collections.Counter[str] = collections.Counter()
    failures, memory_mb, left = [], 0, list(seeds)
    with tempfile.TemporaryDirectory() as place:
        source, work = Path(place, "sound"), Path(place, "work")
        source.mkdir()
        work.mkdir()
        _kind(name).make(source)
        while left:
            lines: list[str] = []
            try:
                timeout = 60 + HANG_S + 0.5 * len(left)
                places = str(source), str(work)
                memory_mb = max(
                    memory_mb, run_isolated(serve, name, left, places, timeout_s=timeout, heard=lines.append)
                )
            except ChildError as error:
                if not lines:
                    raise
                what = "hang" if "longer than" in str(error) else CRASHED if _kind(name).contained else "signal"
                lines.append(f"{lines[-1].split()[0]} {what}: {error}")
            for seed, _, what in (line.partition(" ") for line in lines):
                if what == "begins":
                    continue
                left.remove(int(seed))
                word = what.partition(":")[0]
                counts[word] += 1
                if word not in COLUMNS:
                    failures.append(f"{name}, seed {seed}: {what}")
    return Outcomes(dict(counts), failures, memory_mb)


# --- the kinds -------------------------------------------------------------------------------------------------------


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _small_vit() -> tuple[Any, bytes]:
    """A preprocessing contract and the graph of a random ViT."""
    from tests.graph.vits import random_arrays
    from vitedge.data.preprocessing import Preprocessing
    from vitedge.formats.architecture import PatchStem, ViTConfig
    from vitedge.graph.author import author_vit
    from vitedge.graph.surgery import to_bytes

    config = ViTConfig(
        image_size=(16, 16), stem=PatchStem(patch_size=8), embed_dim=16, depth=1, num_heads=1, mlp_hidden=16,
        num_classes=3,
    )  # fmt: skip
    preprocessing = Preprocessing(size=(16, 16), resize="squash")
    graph = author_vit(config, random_arrays(config, seed=7), mean=preprocessing.mean, std=preprocessing.std)
    return preprocessing, to_bytes(graph)


def _model_record() -> tuple[Any, dict[str, bytes]]:
    from vitedge.formats.model_folder import ModelRecord, Origin, class_table

    preprocessing, graph = _small_vit()
    record = ModelRecord(
        name="small",
        classes=class_table(["ant", "bee", "cat"]),
        preprocessing=preprocessing,
        origin=Origin(kind="onnx", source="a random ViT"),
        licence="MIT",
    )
    return record, {"model.onnx": graph}


def make_model(folder: Path) -> None:
    from vitedge.formats.model_folder import write_model

    write_model(folder / "model", *_model_record())


def read_model(folder: Path) -> Any:
    from vitedge.formats.model_folder import Model

    model = Model.open(folder / "model")
    return model.record, sha256(model.onnx_path.read_bytes())


def make_artifact(folder: Path) -> None:
    import vitedge

    make_model(folder)
    vitedge.export(folder / "model", target="onnxruntime", precision="fp32", out=folder / "artifact")
    shutil.rmtree(folder / "model")


def read_artifact(folder: Path) -> Any:
    from vitedge.formats.artifact import GOLDEN_INPUTS, GOLDEN_LOGITS, GOLDEN_REFERENCE, Artifact

    artifact = Artifact.open(folder / "artifact")
    arrays = [artifact.array(name).tobytes() for name in (GOLDEN_INPUTS, GOLDEN_LOGITS, GOLDEN_REFERENCE)]
    return artifact.manifest, sha256(artifact.graph_path.read_bytes()), [sha256(array) for array in arrays]


def make_result(folder: Path) -> None:
    from tests.reporting.results import demo
    from vitedge.formats.result import write_result

    write_result(demo(), folder / "result.json")


def make_old_result(folder: Path) -> None:
    with zipfile.ZipFile(Path(__file__).parent / "formats" / "written" / "0.1.0.zip") as archive:
        archive.extract("bench.json", folder)
    (folder / "bench.json").rename(folder / "result.json")


def read_and_report(folder: Path) -> Any:
    """A result that is read can be compared, reported and inspected."""
    import vitedge
    from vitedge.formats.result import read_result
    from vitedge.reporting import csv, markdown

    result = read_result(folder / "result.json")
    markdown.render([result])
    csv.render([result])
    vitedge.inspect(folder / "result.json")
    with contextlib.suppress(VitedgeError):  # rows that can't be compared
        vitedge.compare_results([result])
    return result


def make_clip(folder: Path) -> None:
    import numpy as np

    from vitedge.formats.clip import ClipHeader, ClipWriter

    draw = np.random.default_rng(3)
    writer = ClipWriter(folder / "a.clip", ClipHeader(source="test", size=(12, 16), artifact="a"))
    for number in range(8):
        image = draw.integers(0, 40, (12, 16, 3), dtype=np.uint8)
        writer.append(image, sequence=number, arrival_ns=10**9 + number, presentation_s=number / 10)
    writer.close()


def read_clip(folder: Path) -> Any:
    from vitedge.formats.clip import Clip

    clip = Clip(folder / "a.clip")
    frames = list(zip(clip.times_ns, clip.presentations_s, (sha256(frame.tobytes()) for frame in clip), strict=True))
    return clip.header, frames, clip.truncated


def is_part_of_a_clip(sound: Any, read: Any) -> bool:
    """Frames are missing at its end, which nothing tells where it was cut between two of them."""
    return bool(sound[0] == read[0] and sound[1][: len(read[1])] == read[1])


def make_archive(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(5)
    with zipfile.ZipFile(folder / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(6):
            stream = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(stream, ["PNG", "JPEG"][number % 2])
            archive.writestr(
                f"{['cat', 'dog'][number % 3 % 2]}/{number}.{['png', 'jpg'][number % 2]}", stream.getvalue()
            )


def read_archive(folder: Path) -> Any:
    from vitedge.data.images import ImageSet

    images = ImageSet.open(folder / "pictures.zip")
    pictures = [(record, images.digest(index), images.read(index).size) for index, record in enumerate(images.records)]
    return images.classes, pictures


def make_settings(folder: Path) -> None:
    from vitedge.core.paths import shipped_folder

    for name in ("targets", "calibration"):
        shutil.copytree(shipped_folder(name), folder / name, ignore=lambda place, names: _not_toml(place, names))
    settings = 'artifact = "a"\nsource = ["test://", "b.mp4"]\ntop-k = 3\nsmoothing = 0.5\njson = "out.jsonl"\n'
    (folder / "stream.toml").write_text(settings)


def _not_toml(place: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".toml")]


def read_settings(folder: Path) -> Any:
    from vitedge.formats.recipe import load_recipe
    from vitedge.formats.target import load_target
    from vitedge.streaming import settings

    targets = [load_target(path) for path in sorted((folder / "targets").glob("*.toml"))]
    recipes = [load_recipe(path) for path in sorted((folder / "calibration").glob("*.toml"))]
    return targets, recipes, settings.read_settings(folder / "stream.toml", {})


def make_checkpoint(folder: Path) -> None:
    from tests.importing.test_import import timm_folder

    timm_folder(folder)


def read_checkpoint(folder: Path) -> Any:
    from vitedge.importing.checkpoint import import_checkpoint

    return _what_was_imported(import_checkpoint("published", folder, {}, _golden_pictures(), "import it"))


def make_onnx(folder: Path) -> None:
    from tests.importing.test_import import EXPORTS

    shutil.copy(EXPORTS / "dynamo-20.onnx", folder / "a.onnx")


def read_onnx(folder: Path) -> Any:
    from tests.importing.test_import import NORMALISATION
    from vitedge.importing.onnx_file import convert

    options = {**NORMALISATION, "size": (32, 48)}
    return _what_was_imported(convert(folder / "a.onnx", options, _golden_pictures(), "import it"))


@functools.cache
def _golden_pictures() -> Path:
    from vitedge.data.golden import golden_pictures

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    for name, data in golden_pictures().items():
        (folder / Path(name).name).write_bytes(data)
    return folder


def _what_was_imported(imported: Any) -> Any:
    if not math.isfinite(imported.parity.relative):
        raise AssertionError("it was imported though its logits aren't finite")
    return imported.preprocessing, imported.classes, {name: sha256(data) for name, data in imported.files.items()}


def make_watched(folder: Path) -> None:
    (folder / "data").write_bytes(bytes(range(256)))


def read_watched(folder: Path) -> Any:
    """Everything that may go wrong, by the content: the watch is tested with it."""
    data = (folder / "data").read_bytes()
    if data != bytes(range(256)):
        if sum(data) % 4 == 0:
            os.abort()
        if sum(data) % 4 == 1:
            raise KeyError(len(data))
        if sum(data) % 4 == 2:
            raise UsageError("read it", "it's damaged", "copy it again")
    return len(data)


WATCHED = Kind("watched", make_watched, read_watched, checked=True)
KINDS = {
    kind.name: kind
    for kind in (
        Kind("model folder", make_model, read_model, checked=True),
        Kind("artifact", make_artifact, read_artifact, checked=True),
        Kind("result", make_result, read_and_report, checked=True),
        Kind("result of 0.1.0", make_old_result, read_and_report, checked=False),
        Kind("clip", make_clip, read_clip, checked=True, is_part=is_part_of_a_clip),
        Kind("safetensors", make_checkpoint, read_checkpoint, checked=False, head=4000),
        Kind("ONNX", make_onnx, read_onnx, checked=False, contained=True),
        Kind("archive", make_archive, read_archive, checked=True),
        Kind("TOML", make_settings, read_settings, checked=False),
    )
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=2000)
    options.add_argument("--first", type=int, default=0, help="first seed")
    options.add_argument("--kind", action="append", choices=KINDS)
    chosen = options.parse_args()
    print(f"| input | mutants | {' | '.join(COLUMNS)} | failures | memory, MB |")
    print(f"| --- |{' ---: |' * (len(COLUMNS) + 3)}")
    for name in chosen.kind or KINDS:
        counts, failures, memory_mb = run(name, range(chosen.first, chosen.first + chosen.count))
        numbers = " | ".join(f"{counts.get(word, 0):,}" for word in COLUMNS)
        print(f"| {name} | {chosen.count:,} | {numbers} | {len(failures)} | +{memory_mb} |", flush=True)
        for failure in failures:
            print(failure, file=sys.stderr)


if __name__ == "__main__":
    from tests import mutants  # under this name the child finds it, too

    mutants.main()
