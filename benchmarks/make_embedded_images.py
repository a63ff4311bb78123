"""Make the embedded pictures from CIFAR-10 as PNG files in class folders (train.tar.gz, test.tar.gz).

    python benchmarks/make_embedded_images.py CIFAR10_FOLDER held_out.txt --out calibration/

``held_out.txt`` lists the training pictures that ``vitedge train`` held out of the training of the embedded model. The
pictures are equally many a class, in a seeded order, as lossless WebP files, which take 22 % less than the PNG files
and have the same pixels. Equal inputs and an equal Pillow give equal archives.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

from vitedge.data.images import ImageSet

SEED = 0
COUNTS = {"calibration": 512, "held-out": 1000, "display": 500}


def pick(images: ImageSet, count: int, allowed: set[str] | None = None, forbidden: set[str] | None = None) -> list[int]:
    """``count`` indices, the classes as even as possible, in the seeded order."""
    quota = {folder: count // len(images.classes) for folder in images.classes}
    for folder in images.classes[: count % len(images.classes)]:
        quota[folder] += 1
    chosen = []
    for index in images.order(SEED):
        record = images.records[index]
        if (allowed is not None and record.name not in allowed) or (forbidden is not None and record.name in forbidden):
            continue
        if quota[str(record.folder)]:
            quota[str(record.folder)] -= 1
            chosen.append(index)
    if any(quota.values()):
        raise SystemExit(f"too few pictures: {quota}")
    return sorted(chosen)


def lossless_webp(images: ImageSet, index: int) -> bytes:
    """The picture's pixels in the smallest lossless format that vitedge reads."""
    file = io.BytesIO()
    images.read(index).convert("RGB").save(file, "WEBP", lossless=True, quality=100, method=4)
    return file.getvalue()


def write(images: ImageSet, indices: list[int], path: Path) -> None:
    """A zip of ``<class>/<name>.webp`` with one fixed date."""
    with zipfile.ZipFile(path, "w") as archive:
        for index in indices:
            record = images.records[index]
            info = zipfile.ZipInfo(f"{record.folder}/{Path(record.name).stem}.webp", date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, lossless_webp(images, index))
    print(f"{path}: {len(indices)} pictures, {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    train = ImageSet.open(options.cifar10 / "train.tar.gz")
    test = ImageSet.open(options.cifar10 / "test.tar.gz")
    held_out = set(options.held_out.read_text().split("\n")) - {""}
    write(train, pick(train, COUNTS["calibration"], forbidden=held_out), options.out / "cifar10-calibration.zip")
    write(train, pick(train, COUNTS["held-out"], allowed=held_out), options.out / "cifar10-held-out.zip")
    write(test, pick(test, COUNTS["display"]), options.out / "cifar10-display.zip")


if __name__ == "__main__":
    main()
