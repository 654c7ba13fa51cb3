"""Merges: of tensors in memory, or of model folders into one with a card, as a recipe says."""

import fnmatch
import inspect
import json
import platform
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
import torch
import yaml
from jinja2 import Template
from pydantic import Field, ValidationError, field_validator, model_validator
from torch import Tensor

from codiemb_lib import __version__, core
from codiemb_lib.fuse import NUMERICS, methods
from codiemb_lib.fuse.folders import check_origin, open_folders, settings_folder, tied
from codiemb_lib.fuse.moves import Weights
from codiemb_lib.fuse.tensors import Folder, FusionError, Lazy, cast, check_alike, wide, write_model

Model = Weights | str | Path
Score = Callable[[Weights], float]

_MARKDOWN = {  # of formulas in docstrings
    r"\.\. math::((?:.|\n)+?)\n\n": r"$$\1$$\n\n",
    r":math:`((?:.|\n)+?)`": r"$\1$",
}


class Recipe(core.Merge):
    """A merge of model folders, whose paths are relative to the recipe."""

    base: str  # as an encoder is named in a preset: packaged, a folder, or on the Hub
    revision: str = ""  # of the base on the Hub
    ingredients: Annotated[dict[str, str], Field(min_length=1)]  # folders of models or adapters
    settings_from: str = ""  # `base` or an ingredient, where these differ in their settings
    dev: str = ""  # the preset on whose dev sets a greedy soup is scored
    train: str = ""  # the preset on whose training batches `learned` looks

    @field_validator("ingredients", mode="before")
    @classmethod
    def _a_list_has_its_paths_as_names(cls, given: object) -> object:
        if not isinstance(given, list):
            return given
        named = {str(Path(str(path))): path for path in given}
        if len(named) < len(given):
            raise ValueError("expected each ingredient once; weights weigh them")
        return named

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        if "base" in self.ingredients:
            raise ValueError("ingredients: expected other names than `base`, that of the base")
        known, named = ["", "base", *self.ingredients], self.settings_from
        if named not in known:
            raise ValueError(f"settings_from: {core.unknown('ingredient', named, known)}")
        return self


@torch.no_grad()
def merge(
    base: Model,
    checkpoints: Sequence[Model],
    *,
    method: str = "delta",
    scale: float = 1.0,
    keep: Mapping[str, str | int] | None = None,
    output: str | Path | None = None,
    settings_from: str | int = "",
    score: Score | None = None,
    gradient: Callable | None = None,
    **options: Any,
) -> dict[str, Tensor] | Path:
    """Merge models that were trained from one base: base + scale * (merged - base).

    Sums are in float32 or wider. Folders are models of transformers or sentence-transformers with
    weights in safetensors, or adapters of peft, read and written a few tensors at a time. The first
    checkpoint that is no adapter, or else the base, gives the types of numbers, and the tokenizer,
    pooling, prompts and configurations, in which all such checkpoints must agree.

    Args:
        base: The initialisation: a mapping from names to tensors, a folder, or the name of an
            encoder. Layers that the checkpoints were trained without are left out.
        checkpoints: Models with its names, shapes and integers, of the same kind.
        method, **options: A name in `core.METHODS`; its function in `fuse/methods.py` says more.
        scale: Length of the merged delta; 0 gives the base.
        keep: Tensors that are not merged, nor count in a norm: patterns of names such as
            "*embeddings*", the first that fits, and "base" or the number of a checkpoint.
        output: For folders: the folder to write, absent or empty; a card says how it was made.
        settings_from: "base", or the number of the checkpoint whose settings the result takes.
        score: For the greedy soup: from a model to a number, higher being better.
        gradient: For `learned`: from a model to the gradient of a training loss, by tensor.

    Returns:
        The merged mapping, in the order of the base, or the path `output`.

    Raises:
        FusionError: Options, models or folders do not fit together.
        EncoderError: No folder and no encoder has the name of the base.
    """
    if isinstance(checkpoints, str | Path | Mapping):
        raise TypeError("checkpoints: expected a list of models, found a single one.")
    models = {str(j): model for j, model in enumerate(checkpoints)}
    options |= {"method": method, "scale": scale}
    options["keep"] = {pattern: str(source) for pattern, source in (keep or {}).items()}
    if {isinstance(model, str | Path) for model in (base, *checkpoints)} != {output is not None}:
        raise FusionError(
            f"expected folders and an `output`, or mappings and none, found output={output!r}."
        )
    try:
        if output is None:
            settings = core.Merge(ingredients=[*models], **options)
            return merge_weights(base, models, settings, score or gradient)
        ingredients = {name: str(folder) for name, folder in models.items()}
        options["settings_from"] = str(settings_from)
        recipe = Recipe(base=str(base), ingredients=ingredients, **options)
    except ValidationError as error:
        raise FusionError(core.explain(error)) from error
    _merge_folders(recipe, Path(), Path(output), score or gradient)
    return Path(output)


@torch.no_grad()
def merge_weights(
    base: Weights, runs: Mapping[str, Weights], settings: core.Merge, asked: Callable | None = None
) -> dict[str, Tensor]:
    """The model that settings make of the runs they name, in the types of numbers of the first."""
    merged = work_out(base, runs, settings, asked)
    first = {"base": base, **runs}[next(iter(settings.ingredients))]
    return {name: cast(name, merged[name], first[name].dtype).clone() for name in base}


def work_out(
    base: Weights, runs: Mapping[str, Weights], settings: core.Merge, asked: Callable | None = None
) -> Lazy:
    """The model that settings make of the runs they name, in float32 or wider, tensor by tensor.

    `asked` is the callback that a method needs (`core.METHODS`).
    """
    runs = {"base": base, **runs}  # which may be an ingredient, of a delta of zero
    needs = core.METHODS[settings.method].needs
    if bool(needs) != (asked is not None):
        raise FusionError(
            "expected a `score` with 'greedy', a `gradient` with 'learned' and neither with any "
            f"other, found {asked} with {settings.method}."
        )
    models = [runs[name] for name in settings.ingredients]
    check_alike(base, [runs[name] for name in settings.ingredients if name != "base"])
    same = tied([base, *models])  # worked out by their own names, a head and its table would part
    sources, origin, models = with_kept(base, runs, settings)
    options = settings.options() | ({needs: asked} if needs else {})
    merged = getattr(methods, settings.method)(origin, models, **options)
    scale_of = _scales(origin, models, merged, settings, {*sources, *same})

    def scaled(name: str) -> Tensor:
        name = same.get(name, name)
        tensor, scale = origin[name], 0.0 if name in sources else scale_of(name)
        if scale == 1 or not tensor.is_floating_point():
            return merged[name]
        if scale:
            tensor = torch.lerp(tensor.to(wide(tensor.dtype)), merged[name], scale)
        if not tensor.isfinite().all():  # no method has looked at it
            raise FusionError(f"{name}: expected finite weights, found NaN or infinity.")
        return tensor

    result = Lazy(base, scaled)
    result.kept, result.coefficients = merged.kept, merged.coefficients
    return result


def _scales(
    base: Weights, models: Sequence[Weights], merged: Lazy, settings: core.Merge, out: set[str]
) -> Callable[[str], float]:
    """By a tensor's name the factor of its merged delta: `scale`, `match_length` and `depth`.

    The length that is matched is the norm over all tensors that are merged (not `out`). `depth` is
    a line from the first layer's factor, which the embeddings share, to the last one's, which all
    above the layers shares: LiNeS, Wang et al., arXiv 2410.17146.
    """
    scale = settings.scale
    if settings.match_length:
        soup, names = methods.uniform(base, models), [n for n in base if n not in out]
        lengths = [_length(base, model, names) for model in (soup, merged)]
        scale *= lengths[0] / lengths[1] if lengths[1] else 1.0
    if settings.depth is None:
        return lambda name: scale
    first, last = settings.depth
    top = max([layer for name in base if (layer := core.layer_of(name)) is not None], default=0)

    def at(name: str) -> float:
        layer = core.layer_of(name)
        place = 1.0 if layer is None else max(layer, 0) / max(top, 1)
        return scale * (first + (last - first) * place)

    return at


def _length(base: Weights, model: Weights, names: Iterable[str]) -> float:
    """The norm of a model's whole delta."""
    floats = (name for name in names if base[name].is_floating_point())
    return sum((model[n].double() - base[n].double()).square().sum().item() for n in floats) ** 0.5


def with_kept(
    base: Weights, runs: Mapping[str, Weights], settings: core.Merge
) -> tuple[dict[str, str], Weights, list[Weights]]:
    """Which model a tensor comes from that is not merged; base and models as if all had these."""
    sources: dict[str, str] = {}
    for pattern, source in settings.keep.items():
        if not (names := fnmatch.filter(base, pattern)):
            raise FusionError(
                f"keep: {pattern!r} fits none of the tensors' names, such as {next(iter(base))!r}."
            )
        sources = dict.fromkeys(names, source) | sources
    kept = {name: base if source == "base" else runs[source] for name, source in sources.items()}

    def alike(model: Weights) -> Weights:
        return Lazy(model, lambda name: kept.get(name, model)[name]) if kept else model

    return sources, alike(base), [alike(runs[name]) for name in settings.ingredients]


@torch.no_grad()
def fuse_recipe(
    path: str | Path, output: str | Path, gradient_of: Callable | None = None
) -> list[str]:
    """Merge what a recipe in YAML names, by paths from its folder; return the ingredients kept.

    A model that stands in `output` and was made of the same files by the same recipe is kept.
    `gradient_of` makes of a preset, an encoder and a seed the gradient that `learned` follows, as
    `train.training_gradient` does.
    """
    path = Path(path)
    recipe = core.read_settings(path, Recipe, FusionError)
    needs = core.METHODS[recipe.method].needs
    for key, of, says in (("dev", "score", "greedy"), ("train", "gradient", "learned")):
        if bool(found := getattr(recipe, key)) != (needs == of):
            raise FusionError(
                f"{path}: expected `{key}`, a preset whose {key} sets decide, with `method: "
                f"{says}` and no other, found {key}: {found!r} with {recipe.method}."
            )
    return _merge_folders(recipe, path.parent, Path(output), gradient_of, hashed=True)


def _merge_folders(
    recipe: Recipe, here: Path, output: Path, asked: Callable | None = None, hashed: bool = False
) -> list[str]:
    """The one road from folders to a folder; `hashed`: by the hashes of files, which are kept.

    `asked` is the callback that the method needs or, where the recipe names a preset to train on,
    what makes it.
    """
    base = here / recipe.base
    if not base.is_dir():
        from codiemb_lib.model import locate  # takes seconds

        base = locate(core.EncoderSettings(name=recipe.base, revision=recipe.revision))
    folders = {name: here / folder for name, folder in recipe.ingredients.items()}
    check_origin(base, folders.values())
    hashes = [core.sha256_folder(folder) for folder in (base, *folders.values()) if hashed]
    made_of = core.sha256_text(recipe.model_dump_json(), str(NUMERICS), *hashes)
    with core.alone(output), core.scratch_beside(output) as scratch:
        record = output / "merge.json"
        if hashed and record.is_file() and (done := core.read_json(record))["made_of"] == made_of:
            return done["kept"]
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FusionError(f"{output}: expected a new or an empty folder, found content.")
        origin, models, like = open_folders(base, [*folders.values()], scratch)
        source = {"": None, "base": base, **folders}[recipe.settings_from]
        settings = settings_folder(source, base, [*folders.values()], like)
        if name := recipe.dev or recipe.train:
            preset = core.load_preset(name)
            load = partial(_encoder, preset, like, settings, scratch)
            asked = (
                _dev_score(preset, load) if recipe.dev else _gradient(preset, load, origin, asked)
            )
        elif hashed:
            asked = None
        merged = work_out(origin, dict(zip(folders, models, strict=True)), recipe, asked)
        kept = [name for j, name in enumerate(folders) if j in (merged.kept or range(len(folders)))]
        card = _model_card(output.name, recipe, kept, settings, folders if hashed else {})
        texts = {"README.md": card}
        texts |= {record.name: json.dumps({"made_of": made_of, "kept": kept})} if hashed else {}
        write_model(output, merged, like=like, settings=settings, texts=texts)
    return kept


def _encoder(preset: core.Preset, like: Folder, settings: Path, scratch: Path, weights: Weights):
    """The encoder of a preset with these weights."""
    from codiemb_lib.model import Encoder

    # Through a folder, for transformers knows names and heads of its models better than we do.
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = write_model(Path(name) / "model", weights, like=like, settings=settings)
        changes = {"name": str(folder.resolve()), "lora": None}
        return Encoder.load(preset.encoder.model_copy(update=changes))


def _dev_score(preset: core.Preset, load: Callable) -> Score:
    """The function from weights to the mean over tasks of a preset's dev scores."""
    from codiemb_lib.data import load_dataset
    from codiemb_lib.evaluate import encode_split, score

    root = preset.data_root
    data = {d.name: load_dataset(d.name, root=root) for d in preset.datasets if d.dev != 0}
    return lambda w: mean_of_tasks(score(encode_split(load(w), preset, "dev", data=data)))


def _gradient(preset: core.Preset, load: Callable, origin: Weights, make: Callable) -> Callable:
    """The function from weights to the gradient of a preset's training batches, at seed 0."""
    encoder = load(origin)
    names = encoder.backbone.state_dict().keys()
    if strangers := names - dict.fromkeys(origin).keys():
        raise FusionError(
            f"learned: expected the base's tensors under the encoder's own names, found no "
            f"{min(strangers)!r}. Save the models by codiemb, or take another method."
        )
    gradient = make(preset, encoder, 0)
    return lambda weights: gradient({name: weights[name] for name in names})


def mean_of_tasks(scores: pd.DataFrame) -> float:
    """What dev decides by: the mean of the tasks' means (`core.task_means`)."""
    return float(np.mean([*core.task_means(scores).values()]))


def _model_card(
    name: str, recipe: Recipe, kept: list[str], settings: Path, hashed: Mapping[str, Path]
) -> str:
    """The README.md of a merged model, with the SHA-256 of the files of weights in `hashed`."""
    files = [
        (ingredient, file.relative_to(folder).as_posix(), core.sha256_file(file))
        for ingredient, folder in hashed.items()
        for file in Folder(folder).files
    ]
    library = "sentence-transformers" if (settings / "modules.json").is_file() else "transformers"
    written = {"base": recipe.base, "method": recipe.method}
    written |= recipe.model_dump(mode="json", exclude_defaults=True)
    formula = inspect.getdoc(getattr(methods, recipe.method))
    for pattern, markdown in _MARKDOWN.items():
        formula = re.sub(pattern, markdown, formula)
    versions = {"codiemb": __version__, "python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in ("torch", "transformers")}
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return Template(template, keep_trailing_newline=True).render(
        name=name,
        library=library,
        base=recipe.base,
        recipe=yaml.safe_dump(written, sort_keys=False, allow_unicode=True),
        method=recipe.method,
        formula=formula,
        files=files or [(ingredient, "", "") for ingredient in recipe.ingredients],
        kept=kept,
        versions=", ".join(f"{package} {version}" for package, version in versions.items()),
    )
