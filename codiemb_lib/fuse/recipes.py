"""Recipes: one YAML file that says which models are fused and how, and the model that comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from codiemb_lib.core import (
    CodiembError,
    EncoderSettings,
    load_preset,
    read_settings,
    scratch_beside,
    sha256_file,
    task_means,
    unknown,
)
from codiemb_lib.data import load_split
from codiemb_lib.evaluate import encode_dataset
from codiemb_lib.evaluate import score as score_space
from codiemb_lib.fuse.cards import model_card
from codiemb_lib.fuse.methods import METHODS, check_options, merge, options_of
from codiemb_lib.fuse.tensors import (
    Folder,
    check_empty,
    check_origin,
    layout,
    open_models,
    settings_folder,
    write_model,
)
from codiemb_lib.model import Encoder, locate


class RecipeError(CodiembError, ValueError):
    """A recipe is missing, or says something that cannot be done."""


class Recipe(BaseModel):
    """What is fused, and how; further keys are options of the method."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    base: str  # as an encoder is named in a preset: packaged, a folder, or on the Hub
    revision: str = ""  # of the base on the Hub
    ingredients: Annotated[dict[str, str], Field(min_length=1)]  # folders of models or adapters
    method: str = "delta"
    scale: float = 1.0
    keep: dict[str, str] = {}  # patterns of tensors' names: `base`, or the ingredient they stay of
    settings_from: str = ""  # `base` or an ingredient, where these differ in their settings
    dev: str = ""  # the preset on whose dev sets a greedy soup is scored

    @field_validator("ingredients", mode="before")
    @classmethod
    def _a_list_has_its_paths_as_names(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        if len({*map(str, value)}) < len(value):
            raise ValueError(f"expected each ingredient once, found {value}; weights weigh them")
        return {path: path for path in value}

    @field_validator("ingredients")
    @classmethod
    def _base_is_the_base(cls, value: dict[str, str]) -> dict[str, str]:
        if "base" in value:
            raise ValueError("expected other names than `base`, which is that of the base itself")
        return value


class Fused(NamedTuple):
    """What became of a recipe."""

    folder: Path
    tensors: int
    kept: list[str]  # the names of the ingredients in the result


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe and check all that can be checked without its models.

    Raises:
        RecipeError: No such file, no YAML, an unknown key, a value out of its range, or a name that
            is no ingredient's.
        FusionError: The method is unknown, or an option out of its range.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: expected a recipe in YAML, found no such file.")
    recipe = read_settings(path, Recipe, RecipeError)
    method, given = recipe.method, recipe.model_extra
    if method in METHODS:
        keys = [*Recipe.model_fields, *(name for name in options_of(method) if name != "score")]
        if strangers := [key for key in given if key not in keys]:
            raise RecipeError(f"{path}: {unknown('key', strangers[0], keys)}")
    check_options(method, {"scale": recipe.scale, **given}, len(recipe.ingredients))
    names = ["base", *recipe.ingredients]
    for name in (recipe.settings_from or "base", *recipe.keep.values()):
        if name not in names:
            raise RecipeError(f"{path}: {unknown('ingredient', name, names)}")
    if ("score" in options_of(method)) != bool(recipe.dev):
        raise RecipeError(
            f"{path}: expected `dev`, the preset whose dev sets decide, with `method: greedy` and "
            f"no other, found dev: {recipe.dev!r} with {method}."
        )
    return recipe


def fuse_recipe(path: str | Path, output: str | Path) -> Fused:
    """Fuse what a recipe names into a complete model with a card. Paths are from its folder.

    Raises:
        RecipeError: As for :func:`load_recipe`; or a folder is missing, or the output is not empty.
        FusionError: As for `fusion.fuse`.
        EncoderError: The base is unknown.
        UnwritableError: The output cannot be written.
    """
    recipe, here, output = load_recipe(path), Path(path).parent, Path(output)
    name = str((here / recipe.base).resolve()) if (here / recipe.base).is_dir() else recipe.base
    origin = EncoderSettings(name=name, revision=recipe.revision)
    folders = [here / folder for folder in recipe.ingredients.values()]
    numbers = {ingredient: number for number, ingredient in enumerate(recipe.ingredients)}
    try:
        check_empty(output)
        base, models = open_models(locate(origin), folders)
    except (FileNotFoundError, FileExistsError) as error:
        raise RecipeError(str(error)) from error
    check_origin(base.folder, folders)
    source = numbers.get(recipe.settings_from, recipe.settings_from or None)
    settings, like = settings_folder(base, models, source), layout(base, models)
    options = dict(recipe.model_extra)
    if recipe.dev:
        options["score"] = _dev_score(recipe.dev, like, settings, output)
    merged = merge(
        base,
        models,
        method=recipe.method,
        scale=recipe.scale,
        keep={pattern: numbers.get(name, name) for pattern, name in recipe.keep.items()},
        **options,
    )
    kept = [[*recipe.ingredients][number] for number in merged.kept or numbers.values()]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        hashes = {  # beside the merge: they take about as long
            ingredient: {
                file.relative_to(folder).as_posix(): pool.submit(sha256_file, file)
                for file in sorted(folder.rglob("*.safetensors"))
            }
            for ingredient, folder in zip(recipe.ingredients, folders, strict=True)
        }

        def card() -> str:
            given, method = recipe.model_dump(exclude_unset=True), METHODS[recipe.method]
            files = {i: {f: h.result() for f, h in found.items()} for i, found in hashes.items()}
            return model_card(output.name, given, method, kept=kept, settings=settings, files=files)

        try:
            write_model(output, merged, like=like, settings=settings, card=card)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # no use in hashes now
            raise
    return Fused(output, len(merged), kept)


def evaluate(encoder, datasets, records):
    """The scores of an encoder on the records of some data sets."""
    return score_space(encode_dataset(encoder, d, records[d.name]) for d in datasets)


def _dev_score(
    preset: str, like: Folder, settings: Path, output: Path
) -> Callable[[Mapping[str, Tensor]], float]:
    """The function from weights to the mean over tasks of a preset's dev scores."""
    experiment = load_preset(preset)
    scored = [d for d in experiment.datasets if d.dev != 0]
    root = experiment.data_root
    records = {d.name: load_split(d.name, "dev", limit=d.dev, root=root) for d in scored}

    def score(weights: Mapping[str, Tensor]) -> float:
        # Through a folder, for transformers knows names and heads of its models better than we do.
        with scratch_beside(output) as scratch:
            folder = write_model(scratch / "soup", weights, like=like, settings=settings)
            changes = {"name": str(folder.resolve()), "lora": None}
            encoder = Encoder.load(experiment.encoder.model_copy(update=changes))
        scores = evaluate(encoder, scored, records)
        return float(np.mean([*task_means(scores).values()]))

    return score
