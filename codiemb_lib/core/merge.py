"""What a merge may say: which runs, by which method, with which options."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from codiemb_lib.core.settings import Settings


class FusionSettings(Settings):
    """How checkpoints of several variants become one model.

    Keys that are not listed here are options of the method. `fusion.check_options` knows them; this
    module does not, so that a new method leaves every run that reads a preset as it is.
    """

    model_config = ConfigDict(extra="allow")

    ingredients: Annotated[tuple[str, ...], Field(min_length=1)]
    method: str = "delta"
    scale: float = 1.0
    keep: dict[str, str] = {}  # patterns of tensors' names: `base`, or the ingredient they stay of

    @model_validator(mode="after")
    def _kept_are_ingredients(self) -> FusionSettings:
        if strangers := sorted({*self.keep.values()} - {"base", *self.ingredients}):
            raise ValueError(
                f"keep: expected `base` or one of {self.ingredients}, found {strangers}"
            )
        return self

    def options(self) -> dict[str, object]:
        """The keyword arguments of `fusion.fuse`, when ingredients are given in their order."""
        shared: dict[str, object] = {"method": self.method, "scale": self.scale}
        if self.keep:
            places = {name: place for place, name in enumerate(self.ingredients)}
            shared["keep"] = {p: places.get(name, name) for p, name in self.keep.items()}
        return shared | (self.model_extra or {})


class FusionStudy(Settings):
    """Which ways to merge the same runs are compared, and the path between two of them.

    Every method has several settings to choose from on dev, as many as the others where it takes
    any: none gets more looks at dev than another.
    """

    ingredients: Annotated[tuple[str, ...], Field(min_length=2)]
    candidates: dict[str, Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]]
    path: tuple[str, str] | None = None  # from the first run's weights to the second's
    path_points: Annotated[int, Field(ge=3)] = 9

    def merges(self, method: str) -> list[FusionSettings]:
        """The settings of a method that are tried; one may name `ingredients` of its own."""
        shared = {"ingredients": self.ingredients, "method": method}
        return [FusionSettings(**shared | candidate) for candidate in self.candidates[method]]
