"""The recipes that docs/guides/training-costs.md has figures of, and the modules each trains."""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.cost.encoders import EncoderShape
from tokensieve.cost.training import TrainingShape
from tokensieve.errors import UnknownNameError
from tokensieve.nn.config import ObjectiveConfig, ReconstructorConfig, SelectorConfig
from tokensieve.types import Site


@dataclass(frozen=True)
class Recipe:
    """Depths, objective and length of a training: `epochs` over all crops, or `steps`."""

    name: str
    depth: int
    image_depth: int
    objective: str
    estimator: str
    batch: int = 32
    epochs: int = 0
    steps: int = 0

    def crops(self, stored: int) -> int:
        """Crops a training sees, of a store of that many."""
        return self.epochs * stored if self.epochs else self.steps * self.batch

    def objective_config(self) -> ObjectiveConfig:
        """What the recipe minimises."""
        return ObjectiveConfig(objective=self.objective, estimator=self.estimator)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("adaptive", 4, 2, "adaptive", "gumbel", epochs=100),
        Recipe("when-less-is-enough", 3, 0, "when-less-is-enough", "gumbel", epochs=100),
        Recipe("default", 3, 0, "surprise", "explore", steps=30_000),
    )
}


def recipe_of(name: str) -> Recipe:
    """A recipe by name. Raises `UnknownNameError`, which lists them."""
    if name not in RECIPES:
        raise UnknownNameError.of("recipe", name, RECIPES)
    return RECIPES[name]


def training_shape(
    shape: EncoderShape, recipe: Recipe, site: Site = Site.FEATURES
) -> TrainingShape:
    """The modules of a recipe for an encoder, at the encoder's own width.

    A token of several merged patches is wider than the encoder; layers of that width would hold
    about 7 times the parameters. Where crops vary in size, positions are
    sin-cos and there is no image reconstructor, as in `tokensieve train selector`.
    """
    own = shape.transformer.width
    width = None if shape.width(site) == own else own
    info = shape.info(site)
    image_depth = recipe.image_depth if shape.fixed else 0
    selector = SelectorConfig(info, depth=recipe.depth, width=width)
    reconstructor = ReconstructorConfig(
        info,
        depth=recipe.depth,
        width=width,
        positions="learned" if shape.fixed else "sincos",
        image_depth=image_depth,
        patch=shape.patch * shape.merge if image_depth else 0,
    )
    return TrainingShape(selector, reconstructor, shape.tokens)
