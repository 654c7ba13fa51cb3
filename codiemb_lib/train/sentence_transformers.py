"""The objectives and the sampler of tasks for the trainer of sentence-transformers, if installed.

`CoDiEmbLoss` is a loss as it wants them, `TaskBatchSampler` a `multi_dataset_batch_sampler`. What
they compute is what a run of ours computes of the same batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler
from torch import Tensor, nn
from torch.utils.data import BatchSampler, ConcatDataset

from codiemb_lib.core import ObjectiveSettings, PresetError
from codiemb_lib.train.batches import Batch
from codiemb_lib.train.sampling import PlannedBatch, SingleTaskPlan
from codiemb_lib.train.step import batch_loss

_LABELS = {"label", "labels", "score", "scores"}  # what their collator takes for a gold score


class CoDiEmbLoss(nn.Module):
    """The loss of a batch of either task; their trainer calls it with columns and labels.

    With a score in [0, 1] a row is a similarity pair: its first two columns. Without, it is a
    query, `positives` passages that answer it, and hard negatives, which are everybody's. What
    reads like a positive of a query is no negative of it. A process looks at its own batch alone.

    Args:
        model: A transformer and its pooling, then what does not change directions.
        settings: Temperatures and weights, as a preset's `objective`; the numbers of positives and
            negatives are those of the columns.
        positives: How many columns behind the query are positives.
        sts_objective: `codiemb`, `cosent` or `angle`.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        settings: ObjectiveSettings | None = None,
        *,
        positives: int = 1,
        sts_objective: str = "codiemb",
    ) -> None:
        super().__init__()
        self.model, self.settings = model, settings or ObjectiveSettings()
        self.positives, self.sts_objective = positives, sts_objective

    def forward(
        self, sentence_features: Iterable[Mapping[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar."""
        columns = [*sentence_features]
        wanted = labels is not None and self.sts_objective == "codiemb"
        wanted = wanted and self.settings.info_nce_mid > 0
        final, middle = zip(*(self._embed(dict(c), wanted) for c in columns), strict=True)
        batch = _scored(labels) if labels is not None else _answered(columns, self.positives)
        states = [torch.cat(final), torch.cat(middle) if wanted else None]
        how = {"settings": self.settings, "sts_objective": self.sts_objective}
        return batch_loss(batch, *states, **how).total

    def _embed(self, features: dict[str, Any], middle: bool) -> tuple[Tensor, Tensor | None]:
        """Embeddings of a column by the last layer, and by the middle one if it is wanted."""
        transformer, pooling, *_ = getattr(self.model, "module", self.model)
        config = transformer.auto_model.config
        before, config.output_hidden_states = config.output_hidden_states, middle
        try:
            output = self.model(features)
        finally:
            config.output_hidden_states = before
        if not middle:
            return output["sentence_embedding"], None
        layers = output["all_layer_embeddings"]
        pooled = pooling({**output, "token_embeddings": layers[len(layers) // 2]})
        return output["sentence_embedding"], pooled["sentence_embedding"]

    def get_config_dict(self) -> dict[str, Any]:
        """What their model card says of the loss."""
        own = {"positives": self.positives, "sts_objective": self.sts_objective}
        return own | self.settings.model_dump(exclude={"positives", "negatives"})


def _batch(task: str, rows: int, places: tuple, answers: np.ndarray, scores: Sequence) -> Batch:
    planned = PlannedBatch(task, "", (tuple(range(rows)),))
    return Batch(planned, [], np.arange(rows), *places, answers, np.array(scores, np.float32))


def _scored(labels: Tensor) -> Batch:
    n = len(labels)
    places = np.arange(n, 2 * n)[:, None], np.empty(0, int)
    return _batch("sts", n, places, np.empty(0, bool), labels.flatten().tolist())


def _answered(columns: Sequence[Mapping[str, Tensor]], positives: int) -> Batch:
    """Rows of the joined columns: queries, then each column of positives, then of negatives."""
    texts = []  # by column and row, a text as its ids
    for column in columns[1:]:
        masks = column["attention_mask"].bool().cpu()
        pairs = zip(column["input_ids"].cpu(), masks, strict=True)
        texts.append([tuple(ids[mask].tolist()) for ids, mask in pairs])
    B, P = len(texts[0]), positives
    if len(texts) < P:
        raise PresetError(
            f"expected {P} columns of positives behind the query, found {len(texts)}."
        )
    relevant = [{texts[p][i] for p in range(P)} for i in range(B)]
    answers = np.array(
        [[[texts[p][j] in of for p in range(P)] for j in range(B)] for of in relevant]
    )
    taken = set().union(*relevant)
    rows = np.arange(B * (1 + len(texts))).reshape(-1, B)  # of the queries, of each other column
    hard = [
        rows[1 + c, j] for c in range(P, len(texts)) for j in range(B) if texts[c][j] not in taken
    ]
    return _batch("ir", B, (rows[1 : 1 + P].T, np.array(hard, int)), answers, ())


class TaskBatchSampler(MultiDatasetDefaultBatchSampler):
    """Batches of one data set each, by the plan `SingleTaskPlan`; name it by `functools.partial`.

    Args:
        dataset, batch_samplers, generator, seed: What their trainer gives. A data set with a column
            of labels or scores is one of similarity.
        batch_sizes: Rows of a batch of each data set, in their order.
        ir_share: Of the steps; None: as many as the data sets have full batches.
    """

    def __init__(
        self,
        dataset: ConcatDataset,
        batch_samplers: list[BatchSampler],
        generator: torch.Generator | None = None,
        seed: int = 0,
        *,
        batch_sizes: Sequence[int],
        ir_share: float | None = None,
    ) -> None:
        super().__init__(dataset, batch_samplers, generator, seed)
        if len(batch_sizes) != len(dataset.datasets):
            expected = f"expected a batch size for each of {len(dataset.datasets)} data sets"
            raise PresetError(f"{expected}, found {[*batch_sizes]}.")
        rows: list[Any] = []
        for number, part in enumerate(dataset.datasets):
            task = "sts" if _LABELS.intersection(part.column_names) else "ir"
            rows += [SimpleNamespace(task=task, dataset=str(number))] * len(part)
        sizes = {str(number): size for number, size in enumerate(batch_sizes)}
        balance = {"balance": "ir_share", "ir_share": ir_share} if ir_share else {}
        self.plan = SingleTaskPlan(rows, batch_sizes=sizes, **balance)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.plan.steps(self.epoch, seed=self.seed or 0):
            yield [*batch.indices]

    def __len__(self) -> int:
        return self.plan.length()
