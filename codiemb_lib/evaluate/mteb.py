"""MTEB: our encoders, with our prompts, as the library `mteb` (an optional one) takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codiemb_lib.core import CodiembError, Prompts, load_preset, sha256_text
from codiemb_lib.evaluate import NUMERICS
from codiemb_lib.evaluate.benchmark import Row, Store, check_rows, own_prompts
from codiemb_lib.model import Embedder

_METRICS = {
    "Retrieval": {"ndcg_at_10": "ndcg@10", "recall_at_100": "recall@100", "mrr_at_10": "mrr@10"},
    "STS": {"cosine_spearman": "spearman", "cosine_pearson": "pearson"},
}
_TASKS = {"Retrieval": "ir", "STS": "sts"}


class MtebError(CodiembError, RuntimeError):
    """The library is missing, does not know a task, or gave no score."""


def load_mteb() -> Any:
    """The module `mteb`.

    Raises:
        MtebError: It is not installed.
    """
    try:
        import mteb
    except ImportError as error:
        raise MtebError(
            "expected the package mteb, found none. Install it: pip install 'mteb>=2.26,<3' "
            "(our extra `mteb`)."
        ) from error
    return mteb


class MtebEncoder:
    """An encoder as `mteb.evaluate` takes it.

    Args:
        embedder: The encoder, and where its embeddings are kept.
        prompts: Those of tasks, by mteb's names for them.
        default: Of all other tasks. Passages get the passage's prompt, anything else the query's.
        progress: Show a bar of the texts.
    """

    def __init__(
        self,
        embedder: Embedder,
        prompts: Mapping[str, Prompts] = MappingProxyType({}),
        default: Prompts | None = None,
        *,
        progress: bool = False,
    ):
        self.embedder = embedder
        self.prompts = dict(prompts)
        self.default = default or Prompts()
        self.progress = progress

    @cached_property
    def mteb_model_meta(self) -> Any:
        """What mteb names results after: the revision is a hash of model, settings and prompts."""
        load_mteb()
        from mteb.models import ModelMeta

        prompts = {"": self.default, **self.prompts}
        described = [f"{name} {prompts[name].model_dump_json()}" for name in sorted(prompts)]
        return ModelMeta.create_empty(
            {
                "name": f"codiemb/{Path(self.embedder.settings.name).name}",
                "revision": sha256_text(self.embedder.key, *described),
            }
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: str | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Embeddings (n, D) of all texts of mteb's batches."""
        texts = [text for batch in inputs for text in batch["text"]]
        prompts = self.prompts.get(task_metadata.name, self.default)
        is_passage = prompt_type is not None and str(prompt_type) == "document"
        prompt = prompts.passage_prompt if is_passage else prompts.query_prompt
        return self.embedder.embed(texts, prompt=prompt, progress=self.progress)

    def similarity(self, first: Any, second: Any) -> Tensor:
        """Cosine of all pairs (n, m) of unit vectors."""
        return torch.as_tensor(first) @ torch.as_tensor(second).T

    def similarity_pairwise(self, first: Any, second: Any) -> Tensor:
        """Cosine (n,) of unit vectors, row by row."""
        return (torch.as_tensor(first) * torch.as_tensor(second)).sum(-1)


def mteb_tasks(names: Sequence[str]) -> list[Any]:
    """Tasks of mteb by name.

    Args:
        names: `cmteb15`, the 8 retrieval and 7 similarity tasks of the paper; `nanobeir`; or mteb's
            own name of a task.

    Raises:
        MtebError: Unknown to mteb, or a lone string, or mteb is not installed.
    """
    if isinstance(names, str):
        raise MtebError(f"expected a list of names, found one name; write [{names!r}].")
    mteb = load_mteb()
    tasks: dict[str, Any] = {}
    for name in names:
        if name == "nanobeir":
            found = list(mteb.get_benchmark("NanoBEIR").tasks)
        else:
            own = load_preset("cmteb-bge").benchmark if name == "cmteb15" else [name]
            try:
                found = [mteb.get_task(task) for task in own]
            except KeyError as error:
                raise MtebError(
                    f"expected cmteb15, nanobeir or a task of mteb {mteb.__version__}, found "
                    f"{name!r}: {error.args[0]}"
                ) from error
        tasks |= {task.metadata.name: task for task in found}
    return list(tasks.values())


def mteb_task(
    store: Store,
    task: Any,
    prompts: Prompts | None = None,
    *,
    sides: Mapping[str, str] = MappingProxyType({}),
    progress: bool = False,
) -> list[Row]:
    """The rows of one task as mteb scores it, computed or kept.

    A row a split, subset and measure: our three of retrieval, our two of similarity, and of other
    tasks mteb's main score. mteb rounds nDCG and recall to five decimals.

    Args:
        store: Encoder and cache. Of mteb's own cache no use is made.
        task: A task of mteb.
        prompts: None: the model's own.
        sides: `query_prompt` or `passage_prompt` that goes before what `prompts` says of it.
        progress: Show bars.

    Raises:
        MtebError: mteb went on without a result.
        EvaluationError: A score is NaN or out of its range.
        Exception: Whatever mteb raises, as where the task's data is not to be had.
    """
    mteb, about = load_mteb(), task.metadata
    if prompts is None:
        kind = _TASKS.get(about.type, about.type)
        prompts = own_prompts(store.embedder.prompts, kind, default=store.embedder.default_prompt)
    prompts = prompts.model_copy(update=dict(sides))
    revision = str(about.dataset.get("revision"))
    rows = store.once(
        [
            *("mteb", mteb.__version__, about.name, revision, prompts.model_dump_json()),
            str(NUMERICS),
        ],
        partial(_evaluate, store.embedder, task, prompts, progress),
    )
    labels = {"by": f"mteb {mteb.__version__}", "data_hash": revision}
    return [row | labels | prompts.model_dump() for row in rows]


def _evaluate(embedder: Embedder, task: Any, prompts: Prompts, progress: bool) -> list[Row]:
    about = task.metadata
    with _quiet_datasets(not progress):
        result = load_mteb().evaluate(
            MtebEncoder(embedder, {about.name: prompts}, progress=progress),
            task,
            cache=None,
            co2_tracker=False,
            encode_kwargs={"batch_size": 1024, "show_progress_bar": False},  # of the loader alone
            show_progress_bar=False,
        )
    if result.exceptions or not result.task_results:
        raise MtebError(f"expected a result of {about.name}, found {result.exceptions}.")
    counts = about.descriptive_stats or {}
    rows = []
    for split, subsets in result.task_results[0].scores.items():
        for scores in subsets:
            whole = len(subsets) == 1
            count = counts.get(split, {}) if whole else {}
            metrics = _METRICS.get(about.type, {"main_score": about.main_score})
            rows += [
                {
                    "task": _TASKS.get(about.type, about.type),
                    "split": split if whole else f"{split} {scores['hf_subset']}",
                    "metric": metric,
                    "value": float(scores[theirs]),
                    "n": count.get("num_queries", count.get("num_samples")),
                    "passages": count.get("num_documents"),
                }
                for theirs, metric in metrics.items()
            ]
    return check_rows(rows)


@contextmanager
def _quiet_datasets(quiet: bool) -> Iterator[None]:
    """Without the bars of the library through which mteb reads, which would fill a log."""
    from datasets.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    change = quiet and not are_progress_bars_disabled()
    if change:
        disable_progress_bars()
    try:
        yield
    finally:
        if change:
            enable_progress_bars()
