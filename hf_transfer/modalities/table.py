"""The table of modalities: what a sample can be, by recipe."""

from pathlib import Path
from typing import Any

from hf_transfer.errors import user_error
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.modality import Modality
from hf_transfer.modalities.pair import PairModality
from hf_transfer.modalities.text import TextModality
from hf_transfer.settings.files import read_yaml
from hf_transfer.settings.run import RunConfig

MODALITIES: dict[str, Modality[Any]] = {
    one.config.recipe: one for one in (ImageModality(), TextModality(), PairModality())
}


def modality_named(recipe: str) -> Modality[Any]:
    """The modality of a recipe.

    Raises:
        UserError: there is no such recipe.
    """
    if recipe not in MODALITIES:
        raise user_error(expected=f"one of {', '.join(MODALITIES)}", found=recipe, do="use one of these")
    return MODALITIES[recipe]


def recipe_of(path: Path) -> type[RunConfig]:
    """The class of the settings in a YAML file, by the recipe that it names.

    Raises:
        UserError: it names none.
    """
    recipe = read_yaml(path).get("recipe")
    if recipe not in MODALITIES:
        raise user_error(
            expected=f"a line 'recipe: NAME' in {path}, with one of {', '.join(MODALITIES)}",
            found=str(recipe),
            do="add it; a run writes it into the config.yaml of its --output_dir",
        )
    return MODALITIES[recipe].config
