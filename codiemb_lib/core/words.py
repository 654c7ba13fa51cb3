"""The words of every room: tasks and metrics, names and how they are compared, what goes wrong."""

from __future__ import annotations

import difflib
import logging
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

Task = Literal["ir", "sts"]

MAIN_METRIC = {"ir": "ndcg@10", "sts": "spearman"}
# The tasks of scores on data sets that nothing was trained on, where others of the task were.
UNSEEN = {"ir": "ir_unseen", "sts": "sts_unseen"}
MAIN_METRIC |= {UNSEEN[task]: metric for task, metric in MAIN_METRIC.items()}


class CodiembError(Exception):
    """What the user can mend: the message says what was expected, found, and what to do.

    `status` is that with which the command `codiemb` ends: 2 where it was asked for what cannot be
    done, 1 where the work itself failed.
    """

    status = 2


@cache
def say_once(message: str) -> None:
    """Warn of what happened to the user's data, at every door and once a process."""
    logging.getLogger(__name__).warning(message)


def task_means(scores: pd.DataFrame) -> dict[str, float]:
    """The main metric of each task, averaged over its data sets."""
    main = scores[scores["metric"] == scores["task"].map(MAIN_METRIC)]
    return main.groupby("task")["value"].mean().to_dict()


def layer_of(name: str) -> int | None:
    """Layer number of a parameter, -1 for embeddings, None for the rest (pooler, final norm)."""
    if number := re.search(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.", name):
        return int(number[1])
    return -1 if re.search(r"embed|\bw[tp]e\b", name) else None


def normalise(text: str) -> str:
    """Lower-case letters and digits in single spaces, or signs alone: what reads alike is equal."""
    text = text.lower()
    if text.isascii():
        words = re.findall(r"[^\W_]+", text)
    else:  # \w has no vowel signs, without which words of Hindi would read alike
        text = unicodedata.normalize("NFC", text)
        kept = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text)
        words = "".join(kept).split()
    return " ".join(words) or text.strip()


def unknown(kind: str, name: str, choices: Iterable[str], where: str = "") -> str:
    """The message for a name that is none of the choices: it names the nearest."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    place = f" {where}" if where else ""
    return f"unknown {kind} {name!r}: expected one of {choices}{place}.{hint}"
