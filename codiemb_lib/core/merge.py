"""What a merge may say: which models, by which method, with which options."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic.types import PositiveFloat, PositiveInt

from codiemb_lib.core.settings import Name, Settings
from codiemb_lib.core.words import unknown


class Method(NamedTuple):
    """What a way to merge takes; the function of its name stands in `fuse/methods.py`."""

    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    least: int = 1  # models
    most: float = math.inf
    needs: str = ""  # a callback: the `score` of a model on dev, or the `gradient` of training


METHODS = {
    "delta": Method(("granularity", "measure", "weighting", "power", "temperature")),
    "uniform": Method(),
    "linear": Method(("weights",), required=("weights",)),
    "greedy": Method(needs="score"),
    "learned": Method(("granularity", "steps", "rate"), needs="gradient"),
    "task_arithmetic": Method(("weights",)),
    "ties": Method(("density", "weights")),
    "dare": Method(("density", "seed")),
    "slerp": Method(("t",), least=2, most=2),
    "model_stock": Method(("floor",), least=2),
    "regmean": Method(),
    "sce": Method(("density",)),
}


class Merge(Settings):
    """How models that were trained from one base become one.

    Options that are None have the default of the method's function.
    """

    ingredients: Annotated[tuple[str, ...], Field(min_length=1)]
    method: str = "delta"
    scale: float = 1.0  # length of the merged delta
    match_length: bool = False  # first bring it to the length of the uniform soup's
    depth: tuple[float, float] | None = None  # factors of the first and the last layer (LiNeS)
    keep: dict[str, str] = {}  # patterns of tensors' names: `base`, or the ingredient they stay of
    granularity: Literal["model", "layer", "tensor", "row", "element"] | None = None
    measure: Literal["norm", "share"] | None = None
    weighting: Literal["power", "softmax"] | None = None
    power: float | None = None
    temperature: float | None = None
    weights: tuple[float, ...] | None = None  # one for each ingredient
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    t: float | None = None
    steps: PositiveInt | None = None
    rate: PositiveFloat | None = None
    floor: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _fits_its_method(self) -> Merge:
        if self.method not in METHODS:
            raise ValueError(unknown("method", self.method, METHODS))
        method, given, count = METHODS[self.method], self.options(), len(self.ingredients)
        if len({*self.ingredients}) < count:
            found = f"found {[*self.ingredients]}"
            raise ValueError(f"ingredients: expected each once, for weights weigh them, {found}")
        if strangers := [name for name in given if name not in method.options]:
            raise ValueError(unknown(f"option of {self.method}", strangers[0], method.options))
        if missing := [name for name in method.required if name not in given]:
            raise ValueError(f"{self.method}: expected the option {missing[0]!r}, found none")
        if not method.least <= count <= method.most:
            size = "exactly" if method.most == method.least else "at least"
            raise ValueError(f"{self.method}: expected {size} {method.least} models, found {count}")
        if self.method == "learned" and self.granularity not in (None, "model", "layer"):
            raise ValueError(f"granularity: expected model or layer, found {self.granularity!r}")
        if self.temperature == 0:
            raise ValueError("temperature: expected a number other than zero, found 0")
        if (weights := self.weights) is not None:
            expected = ""
            if len(weights) != count:
                expected = f"one for each of {count} models"
            elif self.method == "linear" and not math.fsum(weights):
                expected = "a sum other than zero"
            elif self.method == "ties" and (min(weights) < 0 or not any(weights)):
                expected = "none below zero and one above"
            if expected:
                raise ValueError(f"weights: expected {expected}, found {[*weights]}")
        known = ["base", *self.ingredients]
        if strangers := [name for name in self.keep.values() if name not in known]:
            raise ValueError(f"keep: {unknown('ingredient', strangers[0], known)}")
        return self

    def options(self) -> dict[str, Any]:
        """The options of methods that are given."""
        named = dict.fromkeys(name for method in METHODS.values() for name in method.options)
        return {n: value for n in named if (value := getattr(self, n)) is not None}


class FusionStudy(Settings):
    """Which ways to merge the same runs are compared, and the path between two of them.

    A candidate is what `Merge` takes; it has the study's ingredients, and its label as the method,
    unless it names its own. Of the candidates of a label dev picks one. What has the study's
    ingredients is tried on those of each of the `sets`, too, as SET.LABEL.
    """

    ingredients: Annotated[tuple[str, ...], Field(min_length=2)]
    sets: dict[Name, Annotated[tuple[str, ...], Field(min_length=2)]] = {}
    candidates: dict[Name, tuple[Merge, ...]]
    path: tuple[str, str] | None = None  # from the first run's weights to the second's
    path_points: Annotated[int, Field(ge=3)] = 9

    @field_validator("candidates", mode="before")
    @classmethod
    def _share_what_they_do_not_name(cls, given: Any, info: ValidationInfo) -> Any:
        if not isinstance(given, dict) or not all(given.values()):
            raise ValueError("expected one candidate or more for each label")
        if dotted := [label for label in given if "." in str(label)]:
            raise ValueError(f"expected labels without a point, found {dotted[0]!r}")
        shared = {"ingredients": info.data.get("ingredients", ())}
        return {
            label: [shared | {"method": label} | c if isinstance(c, dict) else c for c in tried]
            for label, tried in given.items()
        }

    @model_validator(mode="after")
    def _sets_are_compared_with_their_soup(self) -> FusionStudy:
        if self.sets and "uniform" not in self.candidates:
            raise ValueError("sets: expected a candidate `uniform`, the soup of each, found none")
        _ = self.tried  # each can be made of each set
        return self

    @property
    def tried(self) -> dict[str, list[Merge]]:
        """By label the merges that are tried; those of a set have its name before the label."""
        found = {label: [*merges] for label, merges in self.candidates.items()}
        for name, own in self.sets.items():
            for label, merges in self.candidates.items():
                given = [
                    merge.model_dump(exclude_unset=True) | {"ingredients": own}
                    for merge in merges
                    if merge.ingredients == self.ingredients
                ]
                found |= {f"{name}.{label}": [Merge(**of) for of in given]} if given else {}
        return found

    @property
    def runs(self) -> list[str]:
        """The ingredients of all candidates, and the ends of the path."""
        merges = [merge for merges in self.tried.values() for merge in merges]
        return [*dict.fromkeys(n for m in merges for n in m.ingredients), *(self.path or ())]


def soup_of(label: str) -> str:
    """The label of the uniform soup of the same set, with which a merge is compared."""
    name, point, _ = label.rpartition(".")
    return f"{name}{point}uniform"
