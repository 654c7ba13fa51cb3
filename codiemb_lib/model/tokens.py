"""From texts to token ids, and from token ids to the blocks and forward passes of an encoder."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from codiemb_lib.model.saved import refuse

_CHARACTERS = 16  # more than a token of running text has
_CUT_AT_ONCE = 1024  # texts; sorted ones differ so little that larger pieces gain nothing


class Tokens(NamedTuple):
    """The token ids of a prompt and its text."""

    ids: list[int]
    prompt: int  # leading ids that belong to the prompt


class Padded(NamedTuple):
    """A block: texts of similar length, padded on the right."""

    ids: np.ndarray  # (B, T)
    lengths: np.ndarray  # (B,)
    prompts: np.ndarray  # (B,), leading tokens of the prompt


class Packing(NamedTuple):
    """How :func:`forward_passes` packs texts."""

    joined: bool  # whether a pass takes blocks of several lengths; see `blocks`
    cost: int  # of a block besides its tokens, in tokens


class TextTokenizer:
    """From prompts and texts to what an encoder takes; light enough to live in a worker process.

    `base` is a tokenizer of transformers; a text is cut to `max_length` tokens, all included.
    """

    def __init__(self, base, max_length: int):
        self.base = base
        self.max_length = max_length
        splitter = getattr(getattr(base, "backend_tokenizer", None), "pre_tokenizer", None)
        by_word = splitter is not None and len(splitter.pre_tokenize_str("a b")) > 1
        self._by_word = by_word and base.truncation_side == "right"

    def __call__(self, texts: Sequence[str], prompts: Sequence[str]) -> list[Tokens]:
        """Token ids of `prompt + text`, cut to `max_length`, and the length of each prompt."""
        joined = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        heads = [self._head(text) for text in joined]
        ids = self._ids(heads)
        for i, (text, head) in enumerate(zip(joined, heads, strict=True)):
            if len(head) < len(text) and len(ids[i]) < self.max_length:  # of words without end
                ids[i : i + 1] = self._ids([text])
        # A byte-level tokenizer may join the prompt's last blank to the first word, which then goes
        # with the prompt, as in sentence-transformers; but something of every text is left.
        lengths = {prompt: self._prompt_length(prompt) for prompt in dict.fromkeys(prompts)}
        return [Tokens(i, min(lengths[p], len(i) - 1)) for i, p in zip(ids, prompts, strict=True)]

    def _head(self, text: str) -> str:
        """Of a long text only whole words enough to fill `max_length`: the rest costs time."""
        limit = _CHARACTERS * self.max_length
        if len(text) <= limit or not self._by_word:
            return text
        return text[:limit].rpartition(" ")[0].rstrip() or text

    def _ids(self, texts: list[str]) -> list[list[int]]:
        only = {"return_attention_mask": False, "return_token_type_ids": False}
        return self.base(texts, truncation=True, max_length=self.max_length, **only)["input_ids"]

    def _prompt_length(self, prompt: str) -> int:
        ids = self.base(prompt)["input_ids"] if prompt else []
        # The special token that closes the prompt when it stands alone is no part of it.
        length = len(ids) - (bool(ids) and ids[-1] in self.base.all_special_ids)
        refuse(
            length >= self.max_length - 1,
            f"expected room for a text behind its prompt, found a prompt of {length} tokens under "
            f"max_length {self.max_length}. Shorten it, or raise max_length.",
        )
        return length

    def pad(self, tokens: Sequence[Tokens]) -> Padded:
        """Put texts side by side in one array."""
        lengths = np.array([len(text.ids) for text in tokens])
        ids = np.full((len(tokens), lengths.max()), self.base.pad_token_id)
        for row, text in zip(ids, tokens, strict=True):
            row[: len(text.ids)] = text.ids
        return Padded(ids, lengths, np.array([text.prompt for text in tokens]))


def forward_passes(
    tokens: Sequence[Tokens], budget: int, packing: Packing
) -> list[list[list[int]]]:
    """Places of texts, the longest first, in forward passes of at most `budget` padded tokens.

    A pass is a list of blocks, a block the places of texts that are padded to one length. They are
    cut with the least padding, each counting as `packing.cost` tokens of it. Where passes are
    `packing.joined` from blocks, they are filled with them; otherwise each pass has one. A text
    longer than the budget stands alone.
    """
    passes: list[list[list[int]]] = []
    room = 0
    for block in _cut(tokens, budget, packing.cost):
        size = len(block) * len(tokens[block[0]].ids)
        if not packing.joined or size > room:
            passes.append([])
            room = budget
        passes[-1].append(block)
        room -= size
    return passes


def _cut(tokens: Sequence[Tokens], budget: int, cost: int) -> list[list[int]]:
    """The cheapest cut of the sorted texts; of many, each `_CUT_AT_ONCE` for themselves."""
    order = np.argsort([-len(text.ids) for text in tokens], kind="stable")
    blocks = []
    for start in range(0, len(order), _CUT_AT_ONCE):
        piece = order[start : start + _CUT_AT_ONCE]
        lengths = np.array([len(tokens[i].ids) for i in piece])
        total = np.zeros(len(piece) + 1)  # of the best cut of the first n texts
        begin = np.zeros(len(piece) + 1, dtype=int)  # where its last block begins
        low = 0
        for n in range(1, len(piece) + 1):
            while low < n - 1 and lengths[low] * (n - low) > budget:
                low += 1
            starts = np.arange(low, n)
            totals = total[low:n] + lengths[low:n] * (n - starts) + cost
            best = int(totals.argmin())
            total[n], begin[n] = totals[best], low + best
        cut, n = [], len(piece)
        while n:
            cut.append(piece[begin[n] : n].tolist())
            n = begin[n]
        blocks += reversed(cut)
    return blocks
