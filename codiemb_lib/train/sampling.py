"""Which records share a step: plans that deal the records of an epoch to steps and ranks.

A plan is a pure function of (epoch, seed, world size). A *global batch* is what all ranks take in
one step; every rank draws the same global batches, each with a shard for every rank, so ranks are
disjoint. Every record comes once an epoch, but for each data set's last incomplete global batch;
under a balance that is not proportional, some come again.
Steps are micro-steps: gradient accumulation groups them and changes nothing here.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from codiemb_lib.core import PresetError
from codiemb_lib.data import Record

logger = logging.getLogger(__name__)

_DataSet = tuple[str, str]  # task, name


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """The global batch of a step: indices into the records of the plan, a shard for each rank."""

    task: Literal["ir", "sts", "mixed"]
    dataset: str
    shards: tuple[tuple[int, ...], ...]

    @property
    def indices(self) -> tuple[int, ...]:
        """The records of all ranks."""
        return sum(self.shards, ())


class SingleTaskPlan:
    """Every step takes one data set, so one task: CoDiEmb's sampler (arXiv 2508.11442).

    The balance says how often the data sets come, counted in steps:

    - `proportional`: each full global batch once, all shuffled together (the authors' rule);
    - `temperature`: data set d, of n_d full batches, has a share of the steps proportional to
      n_d ** temperature; 1 is proportional, 0 gives all data sets the same number of steps;
    - `ir_share`: the retrieval task has the share `ir_share` of the steps; `equal`: half of them.

    No batch is left out for a share: who falls short is drawn again, permuted anew, and logged.

    Args:
        records: The training records, of any number of data sets; one at least.
        batch_sizes: Records per step and rank, by task, {"ir": 16, "sts": 32}, or by data set.
        balance: One of the four, with `ir_share` in (0, 1) or `temperature` of at least 0.

    Raises:
        PresetError: A balance of the tasks, and only one of them has records. Later: a data set
            has no full global batch at a world size.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        batch_sizes: Mapping[str, int],
        balance: str = "proportional",
        ir_share: float | None = None,
        temperature: float = 1.0,
    ) -> None:
        self._members: dict[_DataSet, list[int]] = {}
        for index, record in enumerate(records):
            self._members.setdefault((record.task, record.dataset), []).append(index)
        tasks = {task for task, _ in self._members}
        if balance in ("equal", "ir_share") and tasks != {"ir", "sts"}:
            raise PresetError(
                f"balance={balance!r} weighs two tasks, ir and sts; the records have only "
                f"{', '.join(sorted(tasks))}. Add the other task, or use balance='proportional'."
            )
        self._batch_sizes, self._balance = batch_sizes, balance
        self._ir_share = 0.5 if balance == "equal" else ir_share
        self._temperature = temperature

    def length(self, world_size: int = 1) -> int:
        """Number of steps in an epoch."""
        return sum(quota for _, _, quota in self._quotas(world_size))

    def steps(self, epoch: int, *, seed: int, world_size: int = 1) -> list[PlannedBatch]:
        """The steps of one epoch."""
        generator = np.random.default_rng((seed, epoch))
        batches: list[tuple[_DataSet, np.ndarray]] = []
        for datasets, available, quota in self._quotas(world_size):
            if quota > available:
                names = ", ".join(f"{name} ({task})" for task, name in datasets)
                says = "epoch %d: %s drawn again: %d steps from %d full batches"
                logger.info(says, epoch, names, quota, available)
            drawn = []
            while len(drawn) < quota:
                drawn += self._one_pass(datasets, generator, world_size)
            batches += drawn[:quota]
        shuffled = [batches[i] for i in generator.permutation(len(batches))]
        return [PlannedBatch(*key, _shards(batch, world_size)) for key, batch in shuffled]

    def _quotas(self, world_size: int) -> list[tuple[list[_DataSet], int, int]]:
        """The groups that are balanced against each other: (data sets, full batches, steps)."""
        counts = {key: self._count(key, world_size) for key in self._members}
        if self._balance == "temperature":
            groups = [[key] for key in counts]
            weights = [counts[key] ** self._temperature for key in counts]
        elif self._balance == "proportional":
            groups, weights = [list(counts)], [1.0]
        else:
            groups = [[key for key in counts if key[0] == task] for task in ("ir", "sts")]
            weights = [self._ir_share, 1 - self._ir_share]
        available = [sum(counts[key] for key in group) for group in groups]
        # The smallest unit that cuts nobody short: some group then has exactly what it has.
        unit = max(n / weight for n, weight in zip(available, weights, strict=True))
        steps = [round(unit * weight) for weight in weights]
        return list(zip(groups, available, steps, strict=True))

    def _count(self, key: _DataSet, world_size: int) -> int:
        task, name = key
        records, size = len(self._members[key]), self._size(key)
        return _full_batches(records, size, world_size, f"data set {name!r} ({task})")

    def _size(self, key: _DataSet) -> int:
        return next(self._batch_sizes[name] for name in reversed(key) if name in self._batch_sizes)

    def _one_pass(
        self, datasets: list[_DataSet], generator: np.random.Generator, world_size: int
    ) -> list[tuple[_DataSet, np.ndarray]]:
        """Every full global batch of these data sets once, shuffled together."""
        batches = []
        for key in datasets:
            count = self._count(key, world_size)
            size = self._size(key) * world_size
            shuffled = generator.permutation(self._members[key])
            batches += [(key, batch) for batch in shuffled[: count * size].reshape(count, size)]
        return [batches[i] for i in generator.permutation(len(batches))]


class MixedTaskPlan:
    """Every step draws `batch_size` records a rank of all data sets and tasks: the usual baseline.

    Its methods raise as those of `SingleTaskPlan`.
    """

    def __init__(self, records: Sequence[Record], *, batch_size: int) -> None:
        self._size, self._batch_size = len(records), batch_size

    def length(self, world_size: int = 1) -> int:
        """Number of steps in an epoch."""
        return _full_batches(self._size, self._batch_size, world_size, "the mixed plan")

    def steps(self, epoch: int, *, seed: int, world_size: int = 1) -> list[PlannedBatch]:
        """The steps of one epoch, their task "mixed" and their data set ""."""
        count, size = self.length(world_size), self._batch_size * world_size
        shuffled = np.random.default_rng((seed, epoch)).permutation(self._size)
        batches = shuffled[: count * size].reshape(count, size)
        return [PlannedBatch("mixed", "", _shards(batch, world_size)) for batch in batches]


class PairedTaskPlan(SingleTaskPlan):
    """A retrieval batch, then a similarity batch, and so on: two by two they are a step.

    The batches are those of a plan with equal shares; their order within each task stays.
    """

    def __init__(self, records: Sequence[Record], *, batch_sizes: Mapping[str, int]) -> None:
        super().__init__(records, batch_sizes=batch_sizes, balance="equal")

    def steps(self, epoch: int, *, seed: int, world_size: int = 1) -> list[PlannedBatch]:
        """The batches of one epoch, of retrieval and of similarity by turns."""
        found = super().steps(epoch, seed=seed, world_size=world_size)
        by_task = ([batch for batch in found if batch.task == task] for task in ("ir", "sts"))
        return [batch for both in zip(*by_task, strict=True) for batch in both]


def _shards(batch: np.ndarray, world_size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, batch.reshape(world_size, -1).tolist()))


def _full_batches(records: int, batch_size: int, world_size: int, owner: str) -> int:
    size = batch_size * world_size
    if records < size:
        raise PresetError(
            f"{owner}: expected at least one global batch of {size} records ({batch_size} for each "
            f"of {world_size} ranks), found {records}. Lower the batch size or add records."
        )
    return records // size
