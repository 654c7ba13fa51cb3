"""MTEB: its tasks by name, and the scores that the library `mteb` (an optional one) gives a model.

mteb could load our folders through sentence-transformers, with the same scores. Through our store
two cores take two thirds to nine tenths of the time, and no text is encoded twice.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np

from codiemb_lib.core import Prompts, load_preset
from codiemb_lib.evaluate.benchmark import Row, Store
from codiemb_lib.evaluate.scores import check_differ
from codiemb_lib.evaluate.search import EvaluationError

_TASKS = {"Retrieval": "ir", "STS": "sts"}
_METRICS = {
    "ir": {"ndcg_at_10": "ndcg@10", "recall_at_100": "recall@100", "mrr_at_10": "mrr@10"},
    "sts": {"cosine_spearman": "spearman", "cosine_pearson": "pearson"},
}


def mteb_tasks(names: Sequence[str]) -> list[Any]:
    """Tasks of mteb by name: `cmteb15`, the 8 retrieval and 7 similarity tasks of the paper;
    `nanobeir`; or mteb's own name of a task.
    """
    try:
        import mteb
    except ImportError as error:
        raise EvaluationError(
            "expected the package mteb, found none. Run `pip install 'mteb>=2.26,<3'`."
        ) from error
    tasks: dict[str, Any] = {}
    for name in names:
        if name == "nanobeir":
            found = list(mteb.get_benchmark("NanoBEIR").tasks)
        else:
            own = load_preset("cmteb-bge").benchmark if name == "cmteb15" else [name]
            try:
                found = [mteb.get_task(task) for task in own]
            except KeyError as error:
                raise EvaluationError(
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
    tasks mteb's main score. mteb rounds nDCG and recall to five decimals; its cache is not used.
    Arguments are as for `local_task`; passages get the passage's prompt, all else the query's.
    """
    from mteb import __version__

    about = task.metadata
    used = store.prompts(prompts, sides, _TASKS.get(about.type, about.type))
    revision = str(about.dataset.get("revision"))
    rows = store.once(
        ["mteb", __version__, about.name, revision, *used.values()],
        partial(_score, store, task, used, progress),
    )
    labels = {"by": f"mteb {__version__}", "data_hash": revision}
    labels["ignore_identical_ids"] = getattr(task, "ignore_identical_ids", False)
    return [row | labels | used for row in rows]


def _score(store: Store, task: Any, prompts: Mapping[str, str], progress: bool) -> list[Row]:
    from datasets import disable_progress_bars
    from mteb import evaluate
    from mteb.models import ModelMeta
    from mteb.similarity_functions import dot_score, pairwise_dot_score

    def encode(batches: Iterable[Any], *, prompt_type: str | None = None, **_: Any) -> np.ndarray:
        texts = [text for batch in batches for text in batch["text"]]
        side = "passage_prompt" if prompt_type == "document" else "query_prompt"
        vectors = store.encode(texts, prompt=prompts[side], progress=progress)
        if len(texts) > 2:  # else they may well be alike
            check_differ("similarities", vectors @ vectors[:8].T)
        return vectors

    model = SimpleNamespace(  # what mteb calls an encoder
        encode=encode,
        similarity=dot_score,
        similarity_pairwise=pairwise_dot_score,
        mteb_model_meta=ModelMeta.create_empty({"name": "codiemb/model", "revision": "1"}),
    )
    about = task.metadata
    if not progress:
        disable_progress_bars()  # with which mteb reads: they would fill a log
    result = evaluate(
        model,
        task,
        cache=None,
        co2_tracker=False,
        encode_kwargs={"batch_size": 1024, "show_progress_bar": False},  # of the loader alone
        show_progress_bar=False,
    )
    if result.exceptions or not result.task_results:
        raise EvaluationError(f"expected a result of {about.name}, found {result.exceptions}.")
    kind, counts = _TASKS.get(about.type, about.type), about.descriptive_stats or {}
    rows = []
    for split, subsets in result.task_results[0].scores.items():
        whole = len(subsets) == 1
        count = counts.get(split, {}) if whole else {}
        for scores in subsets:
            labels = {
                "task": kind,
                "split": split if whole else f"{split} {scores['hf_subset']}",
                "n": count.get("num_queries", count.get("num_samples")),
                "passages": count.get("num_documents"),
            }
            for theirs, metric in _METRICS.get(kind, {"main_score": about.main_score}).items():
                rows.append(labels | {"metric": metric, "value": float(scores[theirs])})
    return rows
