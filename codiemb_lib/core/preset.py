"""Presets: all settings of an experiment in one YAML file, checked before any work starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, RootModel, ValidationError, model_validator
from pydantic.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from codiemb_lib.core.files import project_root
from codiemb_lib.core.merge import METHODS, FusionStudy, Merge
from codiemb_lib.core.settings import Name, Settings, explain, read_settings
from codiemb_lib.core.words import CodiembError, Task, unknown

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class PresetError(CodiembError, ValueError):
    """A preset is unknown, or says something that cannot be run."""


def _each_once(values: Sequence) -> Sequence:
    if twice := [value for value in {*values} if values.count(value) > 1]:
        raise ValueError(f"expected each of {[*values]} once, found {twice} again")
    return values


class LoraSettings(Settings):
    """Low-rank adapters that train in place of the encoder's weights (Hu et al., 2106.09685)."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32  # adapters are scaled by alpha / rank
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"


class EncoderSettings(Settings):
    """Which encoder, and how its token states become one vector; null: what its own files say."""

    name: str  # `minilm-l6`, a local folder, or a name on the Hub such as `org/model`
    revision: str = ""  # of the Hub
    trust_remote_code: bool = False  # whether code that comes with the model may run
    layers: NonNegativeInt = 0  # the first k layers; 0: all
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


class Prompts(Settings):
    """What stands before the texts of a task."""

    query_prompt: str = ""  # of both sides of a similarity pair, too
    passage_prompt: str = ""


class Instructions(Settings):
    """Prompts made of sentences that a file of `presets/instructions` has by language and task."""

    file: Name
    language: str
    form: str = "Instruction: {} Query: "  # of a query prompt; {} is the sentence
    passage_prompt: str = ""


class MineSettings(Settings):
    """Hard negatives for the training records of a set that have none.

    A passage counts if its cosine with the query is at most `margin` times that of the least
    similar positive or, where `absolute_margin` is given, lower than it by at least that.
    """

    negatives: PositiveInt = 4
    margin: Annotated[float, Field(gt=0, le=1)] = 0.95
    absolute_margin: Annotated[float, Field(ge=0, le=2)] | None = None
    encoder: str = "start"  # the preset's, untrained; or another, as an encoder is named

    @model_validator(mode="after")
    def _one_margin(self) -> MineSettings:
        if {"margin", "absolute_margin"} <= self.model_fields_set:
            raise ValueError("expected `margin` or `absolute_margin`, found both")
        return self


class DatasetSettings(Prompts):
    """A data set of the registry, and how many records of each split."""

    name: str
    train: NonNegativeInt | None = None  # null: all records; 0: none
    dev: NonNegativeInt | None = None
    test: NonNegativeInt | None = None
    corpus: NonNegativeInt | None = None  # passages of the test beyond its records'
    ignore_identical_ids: bool = False  # BEIR: no document with the query's own id is ranked
    mine: MineSettings | None = None
    instruction: str = ""  # the task of the preset's `instructions` that gives its prompts


class ObjectiveSettings(Settings):
    """Temperatures, pool sizes and weights of the objectives (METHOD: the authors' values)."""

    temperature: PositiveFloat = 0.02  # of InfoNCE, final and middle layer
    rank_temperature: PositiveFloat = 0.05  # of RankKL, PRO, CoSENT, AnglE
    positives: PositiveInt = 2  # drawn for a query
    negatives: NonNegativeInt = 4  # hard negatives drawn for a query
    info_nce_mid: NonNegativeFloat = 1.0
    pearson: NonNegativeFloat = 2.0
    rank_kl: NonNegativeFloat = 5.0
    pro: NonNegativeFloat = 0.5
    anchor_score: Annotated[float, Field(ge=0, le=1)] = 1.0  # pairs that InfoNCE_mid pulls together
    mixed_anchor_score: Annotated[float, Field(ge=0, le=1)] = 0.8  # STS positives of one InfoNCE
    info_nce_final: NonNegativeFloat = 0.0  # InfoNCE of similarity on the last layer, by our choice
    final_anchor_score: Annotated[float, Field(ge=0, le=1)] = 0.8  # pairs that it pulls together
    matryoshka: tuple[Annotated[int, Field(ge=2)], ...] = ()  # leading dimensions that also count


class BatchSizes(Settings):
    """Records of one step on one device."""

    ir: Annotated[int, Field(ge=2)]
    sts: Annotated[int, Field(ge=2)]
    mixed: Annotated[int, Field(ge=2)]


class TrainingSettings(Settings):
    """The optimiser's side of a run."""

    batch_sizes: BatchSizes
    learning_rate: PositiveFloat = 5e-5
    weight_decay: NonNegativeFloat = 0.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03  # share of the steps
    clip_norm: PositiveFloat | None = 1.0  # gradients longer than this are shortened; null: none
    epochs: PositiveInt = 1
    max_steps: NonNegativeInt = 0  # optimiser steps; 0: whole epochs
    accumulation: PositiveInt = 1  # batches per optimiser step
    evaluate_every: PositiveInt = 50  # optimiser steps between dev scores
    keep: Literal["best", "last"] = "best"  # which weights: the best on dev, or the last
    sample_by_seed: bool = False  # whether seeds take other samples of a set's `train` records
    tokens_per_forward: Annotated[int, Field(ge=64)] = 2048  # padded
    gradient_cache: bool = False  # bounds memory at any batch size; slower for small batches
    gradient_checkpointing: bool = False  # computes layers twice, to save memory
    accelerate: str = ""  # a configuration of accelerate in presets/accelerate; "": this process
    trajectory: bool = False  # whether the embeddings behind every dev score are kept
    workers: NonNegativeInt = 0  # that draw and tokenise ahead; a GPU wants some
    trackers: tuple[str, ...] = ()  # of accelerate: tensorboard, trackio, wandb, ...


class TaskWeights(Settings):
    """What the loss of each task is multiplied by."""

    ir: PositiveFloat = 1.0
    sts: PositiveFloat = 1.0


class VariantSettings(Settings):
    """What one training run does differently from the others of its preset.

    A batch has records of one task (`single`), a step one such batch of each task (`paired`), or a
    batch records of both tasks (`mixed`). Similarity has the objective `codiemb`, `cosent` or
    `angle`, its own also in a mixed batch; with `info_nce` its pairs join the InfoNCE of retrieval.
    """

    tasks: Annotated[tuple[Task, ...], Field(min_length=1)] = ("ir", "sts")
    plan: Literal["single", "paired", "mixed"] = "single"
    sts_objective: Literal["codiemb", "cosent", "angle", "info_nce"] = "codiemb"
    weights: TaskWeights = TaskWeights()
    gradients: Literal["unit", "plain"] = "unit"  # in a paired step; unit: as long as `weights`
    teachers: dict[Task, Name] = {}  # variants whose cosines take the place of labels, by task
    balance: Literal["proportional", "equal", "temperature", "ir_share"] = "proportional"
    ir_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    balance_temperature: NonNegativeFloat = 1.0
    learning_rate: PositiveFloat | None = None  # null: the preset's
    max_steps: PositiveInt | None = None  # null: the preset's
    ends_at: PositiveInt | None = None  # the step of its schedule that it ends at; null: the last
    draw: NonNegativeInt = 0  # of a seed: another sample of records, order and dropout
    objective: dict[str, Any] = {}  # the preset's settings of these names, with other values

    @model_validator(mode="after")
    def _settings_belong_together(self) -> VariantSettings:
        if (self.balance == "ir_share") != (self.ir_share is not None):
            raise ValueError("`ir_share` and `balance: ir_share` need each other")
        if self.plan != "single" and self.balance != "proportional":
            raise ValueError(f"a {self.plan} plan has its own balance: leave `balance` out")
        if self.plan == "paired" and len({*self.tasks}) < 2:
            raise ValueError("a paired plan takes both tasks, ir and sts")
        if self.plan == "mixed" and "sts_objective" not in self.model_fields_set:
            raise ValueError(
                "a mixed plan: expected `sts_objective: info_nce`, one InfoNCE for all records, or "
                "`sts_objective: codiemb`, an objective of its own for each task, found neither"
            )
        one = self.sts_objective == "info_nce"
        if one and self.teachers:
            raise ValueError("teachers: expected a `sts_objective` of scores, found info_nce")
        if one and self.plan == "mixed" and self.weights != TaskWeights():
            raise ValueError("weights: expected a loss for each task, found one InfoNCE for all")
        if self.plan != "paired" and self.gradients != "unit":
            raise ValueError("gradients: expected `plan: paired`, whose gradients they are")
        if missing := {*self.tasks} - {*self.teachers} if self.teachers else ():
            raise ValueError(f"teachers: expected one for each of its tasks, lacking {missing}")
        return self


class GeometrySettings(Settings):
    """Which models' spaces are drawn, and how many texts."""

    umap_variants: tuple[str, ...] = ()  # none named: the base and the first three trained variants
    umap_texts: Annotated[int, Field(ge=20)] = 300  # per data set
    umap_neighbors: Annotated[int, Field(ge=2)] = 15


class Margins(Settings):
    """What a model may lack and still be as good, of a score from 0 to 1; said before the runs."""

    model: Annotated[float, Field(gt=0, lt=1)] = 0.005
    merge_ir: Annotated[float, Field(gt=0, lt=1)] = 0.002  # between merges of the same runs
    merge_sts: Annotated[float, Field(gt=0, lt=1)] = 0.001


class Preset(Settings):
    """One experiment: everything that its notebooks do not take as a parameter."""

    name: Name
    extends: Name | None = None  # the preset beside it whose sections hold that this one lacks
    description: str
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_each_once)]
    encoder: EncoderSettings
    data_root: str = ""  # a folder with files of public sets; the variable CODIEMB_DATA goes first
    datasets: Annotated[tuple[DatasetSettings, ...], Field(min_length=1)]
    remove_leaks: bool = False  # records of train that stand in dev or test; see `leaks`
    objective: ObjectiveSettings = ObjectiveSettings()
    training: TrainingSettings
    variants: Annotated[dict[Name, VariantSettings], Field(min_length=1)]
    fusion: dict[Name, Merge] = {}
    fusion_study: FusionStudy | None = None
    benchmark: dict[str, Prompts] = {}  # tasks by their MTEB names
    instructions: Instructions | None = None  # of benchmark tasks and data sets without prompts
    geometry: GeometrySettings = GeometrySettings()
    margins: Margins = Margins()

    @model_validator(mode="after")
    def _objectives_of_variants_are_settings(self) -> Preset:
        for variant, settings in self.variants.items():
            try:
                own = self.as_trained(variant).objective
            except ValidationError as error:
                raise ValueError(f"variant {variant!r}: objective: {explain(error)}") from error
            if settings.sts_objective == "angle" and any(d % 2 for d in own.matryoshka):
                found = f"found {[*own.matryoshka]}"
                place = f"variant {variant!r}: objective.matryoshka"
                raise ValueError(f"{place}: expected even dimensions for `angle`, {found}")
        return self

    @model_validator(mode="after")
    def _names_differ_and_are_known(self) -> Preset:
        _each_once([dataset.name for dataset in self.datasets])
        _each_once(["base", "fusion", "geometry", *self.variants, *self.fusion])  # folders
        if strangers := [v for v in self.geometry.umap_variants if v not in self.models]:
            raise ValueError(f"umap_variants: expected some of {self.models}, found {strangers}")
        for name, variant in self.variants.items():
            for teacher in variant.teachers.values():
                if teacher not in self.variants or self.variants[teacher].teachers:
                    known = [v for v, settings in self.variants.items() if not settings.teachers]
                    raise ValueError(f"variant {name!r}: {unknown('teacher', teacher, known)}")
        merged = {f"fusion {model!r}": merge.ingredients for model, merge in self.fusion.items()}
        if self.fusion_study:
            merged["fusion_study"] = self.fusion_study.runs
        for place, ingredients in merged.items():
            if strangers := [n for n in ingredients if n not in ("base", *self.variants)]:
                known = [*self.variants]
                raise ValueError(f"{place}: expected ingredients among {known}, found {strangers}")
        for model, merge in self.fusion.items():
            if METHODS[merge.method].needs:  # only a study looks at data
                raise ValueError(
                    f"fusion {model!r}: expected a method without scores, found {merge.method!r}"
                )
        return self

    def instructed(self) -> Preset:
        """The preset with the prompts that its `instructions` give."""
        if not (own := self.instructions):
            if named := [d.instruction for d in self.datasets if d.instruction]:
                says = "expected a section `instructions` with its file and language, found none"
                raise PresetError(f"instruction {named[0]!r}: {says}")
            return self
        path = preset_path(self.name).parent / "instructions" / f"{own.file}.yaml"
        found = read_settings(path, RootModel[dict[str, dict[str, str]]], PresetError).root
        if own.language not in found:
            raise PresetError(f"{path}: {unknown('language', own.language, found)}")

        def prompted(settings: Prompts, task: str) -> Prompts:
            if not task or settings.query_prompt or settings.passage_prompt:
                return settings
            if task not in (sentences := found[own.language]):
                raise PresetError(f"{path}: {unknown('task', task, sentences)}")
            query = own.form.replace("{}", sentences[task])
            prompts = {"query_prompt": query, "passage_prompt": own.passage_prompt}
            return settings.model_copy(update=prompts)

        datasets = tuple(prompted(dataset, dataset.instruction) for dataset in self.datasets)
        benchmark = {task: prompted(prompts, task) for task, prompts in self.benchmark.items()}
        return self.model_copy(update={"datasets": datasets, "benchmark": benchmark})

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
        if name not in self.variants:
            raise PresetError(unknown("variant", name, self.variants, f"of preset {self.name!r}"))
        return self.variants[name]

    def as_trained(self, variant: str) -> Preset:
        """The preset with the objective, learning rate and steps of one of its variants."""
        own = self.variant(variant)
        given = {name: getattr(own, name) for name in ("learning_rate", "max_steps")}
        changed = {name: value for name, value in given.items() if value is not None}
        training = self.training.model_copy(update=changed)
        objective = ObjectiveSettings(**self.objective.model_dump() | own.objective)
        return self.model_copy(update={"objective": objective, "training": training})


def preset_path(name: str) -> Path:
    """Where the preset of this name lies; a name that ends as YAML files do is itself a path."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    return project_root() / "notebooks" / "presets" / f"{name}.yaml"


def load_preset(name: str) -> Preset:
    """Read `notebooks/presets/<name>.yaml`, or the YAML file that `name` is the path of.

    Raises:
        PresetError: No such preset, no YAML, an unknown key, or a value out of its range.
    """
    path = preset_path(name)
    if not path.is_file():
        known = [file.stem for file in preset_path("x").parent.glob("*.yaml")]
        raise PresetError(unknown("preset", name, known))
    extended = None
    if extends := _extends(path):
        other = path.with_name(f"{extends}.yaml")
        if further := _extends(other):
            expected = f"expected a preset that stands by itself, found that it extends {further!r}"
            raise PresetError(f"{path}: extends: {extends!r}: {expected}")
        extended = read_settings(other, Preset, PresetError)
    preset = read_settings(path, Preset, PresetError, beside=extended)
    if preset.name != path.stem:
        raise PresetError(f"{path}: expected `name: {path.stem}`, found `name: {preset.name}`")
    return preset.instructed()


def _extends(path: Path) -> str | None:
    return read_settings(path, RootModel[dict[str, Any]], PresetError).root.get("extends")
