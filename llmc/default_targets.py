"""What is built when a recipe does not name targets, for a model that none can be made of yet."""

from __future__ import annotations

from llmc.convert.spec import ModelSpec
from llmc.errors import InputError
from llmc.recipe import Recipe


def with_possible_targets(recipe: Recipe, spec: ModelSpec) -> Recipe:
    """The recipe, without the default targets where the model has no graph; the quantized checkpoint is the result.

    Raises:
        InputError: if it asks for some
    """
    obstacle = spec.graph_obstacle
    if obstacle is None or not recipe.targets:
        return recipe
    if "targets" in recipe.model_fields_set:
        names = ", ".join(name for each in recipe.targets for name in each)
        raise InputError(
            f"targets: {names} cannot be made of {spec.family}: {obstacle}; write `targets: []` to build the quantized "
            "checkpoint, which transformers and vLLM load"
        )
    return recipe.model_copy(update={"targets": []})


def target_notes(recipe: Recipe, spec: ModelSpec) -> list[str]:
    """A line on why there are none."""
    if spec.graph_obstacle is None or recipe.targets:
        return []
    return [f"no targets: {spec.graph_obstacle}; the quantized checkpoint is the result"]
