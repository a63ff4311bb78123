"""``vitedge recipes``."""

from __future__ import annotations

from typing import Annotated

import typer

from vitedge.cli.options import Json


def recipes(
    name: Annotated[str | None, typer.Argument(help="Name or TOML file of a recipe to show in full.")] = None,
    json: Json = None,
) -> None:
    """List the recipes: how calibration images are observed, and how numbers become integers.

    Your own recipes are TOML files in ~/.config/vitedge/calibration/.

    **Examples**

    `vitedge recipes`

    `vitedge recipes thorough`
    """
    from vitedge import api
    from vitedge.reporting import terminal

    if name is not None:
        terminal.emit(api.recipe(name), json, terminal.show_recipe)
    else:
        terminal.emit(api.recipes(), json, terminal.show_recipes)
