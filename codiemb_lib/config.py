"""Presets: all settings of an experiment in one YAML file, checked before any work starts."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Task = Literal["ir", "sts"]

_Chosen = TypeVar("_Chosen")


def project_root() -> Path:
    """The folder that holds `notebooks/`, `data/` and `figures/`.

    It is the one above this package; the environment variable `CODIEMB_ROOT` names another.
    """
    return Path(os.environ.get("CODIEMB_ROOT") or Path(__file__).resolve().parents[1])


def data_root(named: str = "") -> Path | None:
    """The folder in which the files of public data sets are looked for first, or None.

    The environment variable `CODIEMB_DATA` names it, else `named`, which is a preset's `data_root`;
    both are relative to the project's folder.
    """
    named = os.environ.get("CODIEMB_DATA") or named
    return project_root() / named if named else None


class PresetError(ValueError):
    """A preset is unknown, or says something that cannot be run."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LoraSettings(_Settings):
    """Low-rank adapters that train in place of the encoder's weights (Hu et al., 2106.09685)."""

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32  # adapters are scaled by alpha / rank
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"


class EncoderSettings(_Settings):
    """Which encoder, and how its token states become one vector; null: what its own files say."""

    name: str  # `minilm-l6`, a local folder, or a name on the Hub such as `org/model`
    revision: str = ""  # of the Hub
    trust_remote_code: bool = False  # whether code that comes with the model may run
    layers: Annotated[int, Field(ge=0)] = 0  # the first k layers; 0: all
    pooling: Literal["", "cls", "mean", "last"] = ""  # "": what the model's own files say
    include_prompt: bool | None = None  # whether the prompt's tokens count in the mean
    max_length: Annotated[int, Field(ge=4)] | None = None  # tokens, with prompt and special ones
    attention: Literal["", "bidirectional"] = ""  # of a decoder, which by itself looks back only
    lora: LoraSettings | None = None

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> EncoderSettings:
        if self.trust_remote_code and not self.revision:
            raise ValueError("trust_remote_code needs a `revision`: code that runs must be pinned")
        return self


class Prompts(_Settings):
    """What stands before the texts of a task."""

    query_prompt: str = ""  # of both sides of a similarity pair, too
    passage_prompt: str = ""


class DatasetSettings(Prompts):
    """A data set of the registry, and how many records of each split."""

    name: str
    train: Annotated[int, Field(ge=0)] | None = None  # null: all records; 0: none
    dev: Annotated[int, Field(ge=0)] | None = None
    test: Annotated[int, Field(ge=0)] | None = None
    corpus: Annotated[int, Field(ge=0)] | None = None  # passages of the test beyond its records'


class ObjectiveSettings(_Settings):
    """Temperatures, pool sizes and weights of the objectives (METHOD: the authors' values)."""

    temperature: Annotated[float, Field(gt=0)] = 0.02  # of InfoNCE, final and middle layer
    rank_temperature: Annotated[float, Field(gt=0)] = 0.05  # of RankKL, PRO, CoSENT, AnglE
    positives: Annotated[int, Field(ge=1)] = 2  # drawn for a query
    negatives: Annotated[int, Field(ge=0)] = 4  # hard negatives drawn for a query
    info_nce_mid: Annotated[float, Field(ge=0)] = 1.0
    pearson: Annotated[float, Field(ge=0)] = 2.0
    rank_kl: Annotated[float, Field(ge=0)] = 5.0
    pro: Annotated[float, Field(ge=0)] = 0.5
    anchor_score: Annotated[float, Field(ge=0, le=1)] = 1.0  # pairs that InfoNCE_mid pulls together
    mixed_anchor_score: Annotated[float, Field(ge=0, le=1)] = 0.8  # STS positives in mixed batches
    matryoshka: tuple[Annotated[int, Field(ge=2)], ...] = ()  # leading dimensions that also count


class BatchSizes(_Settings):
    """Records of one step on one device."""

    ir: Annotated[int, Field(ge=2)]
    sts: Annotated[int, Field(ge=2)]
    mixed: Annotated[int, Field(ge=2)]


class TrainingSettings(_Settings):
    """The optimiser's side of a run."""

    batch_sizes: BatchSizes
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03  # share of the steps
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    epochs: Annotated[int, Field(ge=1)] = 1
    max_steps: Annotated[int, Field(ge=0)] = 0  # optimiser steps; 0: whole epochs
    accumulation: Annotated[int, Field(ge=1)] = 1  # batches per optimiser step
    evaluate_every: Annotated[int, Field(ge=1)] = 50  # optimiser steps between dev scores
    tokens_per_forward: Annotated[int, Field(ge=64)] = 2048  # padded
    gradient_cache: bool = False  # bounds memory at any batch size; slower for small batches
    gradient_checkpointing: bool = False  # computes layers twice, to save memory
    accelerate: str = ""  # a configuration of accelerate in presets/accelerate; "": this process
    trajectory: bool = False  # whether the embeddings behind every dev score are kept
    workers: Annotated[int, Field(ge=0)] = 0  # that draw and tokenise ahead; a GPU wants some
    trackers: tuple[str, ...] = ()  # of accelerate: tensorboard, trackio, wandb, ...


class VariantSettings(_Settings):
    """What one training run does differently from the others of its preset."""

    tasks: Annotated[tuple[Task, ...], Field(min_length=1)] = ("ir", "sts")
    plan: Literal["single", "mixed"] = "single"
    sts_objective: Literal["codiemb", "cosent", "angle"] = "codiemb"
    balance: Literal["proportional", "equal", "temperature", "ir_share"] = "proportional"
    ir_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    balance_temperature: Annotated[float, Field(ge=0)] = 1.0
    learning_rate: Annotated[float, Field(gt=0)] | None = None  # null: the preset's
    objective: dict[str, Any] = {}  # the preset's settings of these names, with other values

    @model_validator(mode="after")
    def _share_belongs_to_its_balance(self) -> VariantSettings:
        if (self.balance == "ir_share") != (self.ir_share is not None):
            raise ValueError("`ir_share` and `balance: ir_share` need each other")
        if self.plan == "mixed" and self.balance != "proportional":
            raise ValueError("a mixed plan draws from all records alike: leave `balance` out")
        return self


class FusionSettings(_Settings):
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


class FusionStudy(_Settings):
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


class GeometrySettings(_Settings):
    """Which models' spaces are drawn, and how many texts."""

    umap_variants: tuple[str, ...] = ()  # none named: the base and the first three trained variants
    umap_texts: Annotated[int, Field(ge=20)] = 300  # per data set
    umap_neighbors: Annotated[int, Field(ge=2)] = 15


class Preset(_Settings):
    """One experiment: everything that its notebooks do not take as a parameter."""

    name: str
    description: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    encoder: EncoderSettings
    data_root: str = ""  # a folder with files of public sets; the variable CODIEMB_DATA goes first
    datasets: Annotated[tuple[DatasetSettings, ...], Field(min_length=1)]
    remove_leaks: bool = False  # records of train that stand in dev or test; see `leaks`
    objective: ObjectiveSettings = ObjectiveSettings()
    training: TrainingSettings
    variants: Annotated[dict[str, VariantSettings], Field(min_length=1)]
    fusion: dict[str, FusionSettings] = {}
    fusion_study: FusionStudy | None = None
    benchmark: dict[str, Prompts] = {}  # tasks by their MTEB names
    geometry: GeometrySettings = GeometrySettings()

    @model_validator(mode="after")
    def _names_fit_together(self) -> Preset:
        names = [dataset.name for dataset in self.datasets]
        if len(set(names)) < len(names):
            raise ValueError(f"every data set once, found {names}")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds: expected different numbers from 0, found {[*self.seeds]}")
        study = self.fusion_study.candidates if self.fusion_study else ()
        for name in (self.name, *self.variants, *self.fusion, *study):  # become names of folders
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
                raise ValueError(
                    f"the name {name!r}: expected letters, digits, `_`, `-` and `.`, the first a "
                    "letter or a digit"
                )
        taken = {"base": "the untrained encoder", "fusion": "the folder of merges"}
        if clash := taken.keys() & (self.variants.keys() | self.fusion.keys()):
            name = clash.pop()
            raise ValueError(f"the name {name!r} is taken by {taken[name]}")
        if clash := self.variants.keys() & self.fusion.keys():
            raise ValueError(f"{clash.pop()!r} names a variant and a fusion")
        merged = {f"fusion {model!r}": f.ingredients for model, f in self.fusion.items()}
        if study := self.fusion_study:
            merged["fusion_study.path"] = study.path or ()
            for method in study.candidates:
                for settings in study.merges(method):
                    merged[f"fusion_study.{method} {settings.ingredients}"] = settings.ingredients
        for place, ingredients in merged.items():
            if strangers := [v for v in ingredients if v not in self.variants]:
                raise ValueError(
                    f"{place}: expected ingredients among {[*self.variants]}, found {strangers}"
                )
        for variant, settings in self.variants.items():
            try:
                own = ObjectiveSettings(**self.objective.model_dump() | settings.objective)
            except ValidationError as error:
                wrong = explain(error, inside="objective")
                raise ValueError(f"variant {variant!r}: {wrong}") from error
            if settings.sts_objective == "angle" and any(d % 2 for d in own.matryoshka):
                raise ValueError(
                    f"variant {variant!r}: objective.matryoshka: expected even dimensions, whose "
                    f"halves `angle` pairs, found {[*own.matryoshka]}"
                )
        if strangers := [v for v in self.geometry.umap_variants if v not in self.models]:
            raise ValueError(f"umap_variants: expected some of {self.models}, found {strangers}")
        return self

    @property
    def models(self) -> list[str]:
        """Every model that is compared: the base, the trained variants, the fused ones."""
        return ["base", *self.variants, *self.fusion]

    @property
    def drawn_models(self) -> list[str]:
        """The models whose pairs, layers and maps are drawn: more than a few make small panels."""
        return [*self.geometry.umap_variants] or ["base", *[*self.variants][:3]]

    def model_seeds(self, model: str) -> list[int]:
        """The seeds at which a model exists; the untrained encoder has one."""
        return [self.seeds[0]] if model == "base" else list(self.seeds)

    def variant(self, name: str) -> VariantSettings:
        """The settings of one trained variant."""
        return self._named("variant", name, self.variants)

    def as_trained(self, variant: str) -> Preset:
        """The preset with the objective and learning rate of one of its variants."""
        own = self.variant(variant)
        training = self.training
        if own.learning_rate is not None:
            training = training.model_copy(update={"learning_rate": own.learning_rate})
        objective = ObjectiveSettings(**self.objective.model_dump() | own.objective)
        return self.model_copy(update={"objective": objective, "training": training})

    def fused(self, name: str) -> FusionSettings:
        """The settings of one fused model."""
        return self._named("fusion", name, self.fusion)

    def _named(self, kind: str, name: str, settings: dict[str, _Chosen]) -> _Chosen:
        """One of the settings; PresetError where there is none of that name."""
        if name not in settings:
            raise PresetError(unknown(kind, name, settings, f"of preset {self.name!r}"))
        return settings[name]


def unknown(kind: str, name: str, choices, where: str = "") -> str:
    """The message for a name that is none of the choices: it names the nearest."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    place = f" {where}" if where else ""
    return f"unknown {kind} {name!r}: expected one of {choices}{place}.{hint}"


def preset_path(name: str) -> Path:
    """Where the preset of this name lies."""
    return project_root() / "notebooks" / "presets" / f"{name}.yaml"


def load_preset(name: str) -> Preset:
    """Read `notebooks/presets/<name>.yaml`, or the YAML file that `name` is the path of.

    Raises:
        PresetError: No such preset, no YAML, an unknown key, or a value out of its range.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else preset_path(name)
    if not path.is_file():
        known = [file.stem for file in preset_path("x").parent.glob("*.yaml")]
        raise PresetError(unknown("preset", name, known))
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise PresetError(f"{path}: expected YAML, found: {error}") from error
    if not isinstance(content, dict):
        raise PresetError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
    try:
        preset = Preset.model_validate(content)
    except ValidationError as error:
        raise PresetError(f"{path}: " + explain(error)) from error
    if preset.name != path.stem:
        raise PresetError(f"{path}: expected `name: {path.stem}`, found `name: {preset.name}`")
    return preset


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings have each key once, as the standard has it."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} a second time", key.start_mark
                )
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """What a text in YAML says; yaml.YAMLError where it is none, or a key stands twice."""
    return yaml.load(text, _UniqueKeys)


def explain(error: ValidationError, inside: str = "") -> str:
    """What is wrong with settings, or with a section: a clause for each problem, naming the key."""
    lines = []
    for problem in error.errors():
        location = [*([inside] if inside else []), *problem["loc"]]
        key = ".".join(map(str, location)) or "preset"
        if problem["type"] == "extra_forbidden":
            *parents, name = location
            lines.append(f"{key}: {unknown('key', str(name), _keys_at(parents))}")
        elif not problem["loc"]:  # of the whole: all of it would be too much to show
            lines.append(f"{key}: {problem['msg']}")
        else:
            lines.append(f"{key}: {problem['msg']}, found {problem['input']!r:.200}")
    return "; ".join(lines)


def _keys_at(location: list[str | int]) -> list[str]:
    """The keys that a preset knows at a location such as ["training", "batch_sizes"]."""
    sections: dict[str, type[_Settings]] = {
        "encoder": EncoderSettings,
        "lora": LoraSettings,
        "datasets": DatasetSettings,
        "objective": ObjectiveSettings,
        "training": TrainingSettings,
        "batch_sizes": BatchSizes,
        "variants": VariantSettings,
        "fusion": FusionSettings,
        "fusion_study": FusionStudy,
        "benchmark": Prompts,
        "geometry": GeometrySettings,
    }
    for part in reversed(location):
        if part in sections:
            return list(sections[part].model_fields)
    return list(Preset.model_fields)
