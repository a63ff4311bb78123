"""A recipe: the settings of calibration, as one TOML file in ``calibration/``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from vitedge.core import paths
from vitedge.core.schema import Record, load_toml
from vitedge.errors import UsageError


class Observe(Record):
    """The images and values to observe. Statistics are cached by this section, the model and the images."""

    num_samples: Annotated[int, Meta(ge=1)]  # calibration images
    seed: int  # order of the images and of the kept rows
    reservoir_rows: Annotated[int, Meta(ge=16)]  # token rows kept per layer input
    histogram_bins: Annotated[int, Meta(ge=64)]  # bins per channel


class Improve(Record):
    """Exact changes of the float graph before rounding."""

    layernorm_migration: bool  # per-channel shift and scale moved from LayerNorm into the next linear (RepQ-ViT)
    value_migration: bool = False  # the same for attention's output, from the values' weights into the projection's
    input_migration: bool = False  # the same by operators in front of a linear, where nothing else can take it up
    gelu_shift: bool = False  # GELU's output centred, where the runtime's grids are symmetric


class Round(Record):
    """The rounding of numbers to integers."""

    activations: Literal["minmax", "mse"]  # how the range of a layer's input is chosen
    weights: Literal["minmax", "mse"]  # how each output channel's scale is chosen
    rounding: Literal["nearest", "gptq"]  # gptq: each weight's error is taken up by the weights still to be rounded
    bias_correction: bool  # take the mean output error back out through the bias
    ridge: bool = False  # weights make up for what rounding their inputs does (ERQ), where unseen rows confirm it


class Recipe(Record):
    """A recipe's three sections: observe, improve, round."""

    summary: str
    observe: Observe
    improve: Improve
    round: Round
    name: str = ""  # the file's stem; not written in the file


def load_recipe(name: str | Path) -> Recipe:
    """Load the recipe called ``name``, or described by a TOML file.

    Raises:
        UsageError: unknown name (the nearest is given), unknown key or bad value (with its line).
    """
    from msgspec.structs import replace

    path = paths.find("calibration", str(name))
    recipe = load_toml(path, Recipe, f"recipe '{name}'")
    if recipe.name:
        raise UsageError(f"recipe '{name}'", f"{path}: the key 'name' is the file's own name", "remove the key")
    return replace(recipe, name=path.stem)
