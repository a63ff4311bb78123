"""timm's evaluation transform, from a ``pretrained_cfg`` to fields of the preprocessing contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitedge.errors import UsageError

#: ``timm.data.resolve_data_config``'s own, for keys that are missing, null or empty.
DEFAULTS: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
FIELDS = {"input_size": "size", "crop_pct": "crop_fraction", "crop_mode": "resize"}  # of the contract


def evaluation_transform(
    pretrained: Mapping[str, Any], size: tuple[int, int], given: Mapping[str, Any], action: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``timm.data.create_transform``'s transform for a ``pretrained_cfg``, as fields of the contract.

    Args:
        pretrained: the ``pretrained_cfg``.
        size: (height, width) of the pictures that it makes, pixels.
        given: fields that the caller says.
        action: for error texts.

    Returns:
        The fields, and ``{"from": "timm", field: value, …}`` of those that timm fills, empty where it fills none.

    Raises:
        UsageError: a crop that the contract can't express, and the caller says no other.
    """
    missing = [key for key in DEFAULTS if not pretrained.get(key)]
    source = {key: value if key in missing else pretrained[key] for key, value in DEFAULTS.items()}
    resize = {"squash": "squash", "border": "pad"}.get(source["crop_mode"], "shortest")  # timm centres any other
    if resize == "pad" and source["crop_pct"] != 1.0 and not {"resize", "crop_fraction"} & given.keys():
        reason = f"crop_mode 'border' with crop_pct {source['crop_pct']} isn't offered; missing: --crop-fraction"
        raise UsageError(action, reason, "give --crop-fraction 1 to keep the whole picture")
    fields: dict[str, Any] = {
        "size": size,
        "resize": resize,
        "interpolation": source["interpolation"],
        "crop_fraction": source["crop_pct"],
        "crop_rounding": "floor",
        "mean": tuple(source["mean"]),
        "std": tuple(source["std"]),
    }
    if resize == "pad":
        fields["fill"] = tuple(round(255 * value) for value in source["mean"])
    taken = [FIELDS.get(key, key) for key in missing]
    return fields, {"from": "timm", **{name: fields[name] for name in taken}} if taken else {}
