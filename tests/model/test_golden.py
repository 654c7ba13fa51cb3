"""Golden values of encoders: embeddings, how texts are packed, dropout's bits, block attention."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from codiemb_lib.core.preset import EncoderSettings
from codiemb_lib.model.blocks import Block, block_attention, keep_mask
from codiemb_lib.model.encoder import Encoder
from codiemb_lib.model.loading import model_hash
from codiemb_lib.model.tokens import Packing, Tokens, forward_passes
from tests.conftest import ARCHITECTURES, tiny_architecture
from tests.golden import check, summary

TINY = [
    "find the old cat",
    "a red bus is fast",
    "the dog",
    "blue car in the new bus",
    "slow cat",
    "it is the old dog of the new car in the red bus " * 3,
]
TEXTS = [
    "How do I sort a list of dictionaries by a value?",
    "sorted(rows, key=lambda row: row['name'])",
    "A man is playing a guitar.",
    "Someone plays an instrument.",
    "The fire has destroyed several homes north of Sydney.",
    "old",
    "new",
    "Zürich liegt an der Limmat; 東京 does not.",
    "the the the the the the the the the the the the",
    "A sentence with 1,234.56 numbers, and signs: #!?",
    "An article of some length. " * 30,
    "man",
]
PROMPT = "query: "


def embeddings(vectors: np.ndarray) -> dict:
    """Sums and entries, and how all rows lie to the first."""
    return {"vectors": summary(vectors), "cosines": summary(vectors @ vectors[0])}


def architecture(name: str) -> dict:
    found = {}
    for pooling in ("cls", "mean", "last"):
        for included in (False, True) if pooling == "mean" else (False,):
            encoder = tiny_architecture(name, pooling=pooling, include_prompt=included)
            for label, prompt in {"no prompt": "", "with a prompt": PROMPT}.items():
                vectors = encoder.encode(TINY, prompt=prompt, tokens_per_forward=64)
                how = "included, " if included else ""
                found[f"{pooling}, {how}{label}"] = embeddings(vectors)
    encoder = tiny_architecture(name)
    tokens = encoder.tokenizer(TINY, [PROMPT] * len(TINY))
    found["tokens"] = {"ids": [t.ids for t in tokens], "prompts": [t.prompt for t in tokens]}
    with torch.no_grad():
        final, middle = encoder([encoder.tokenizer.pad(tokens)], middle=True)
        found["middle"] = embeddings(middle.numpy())
        encoder.joins_blocks = False
        (alone,) = encoder([encoder.tokenizer.pad(tokens)])
    found["padded together"], found["by itself"] = embeddings(final.numpy()), summary(alone)
    with TemporaryDirectory() as folder:
        saved = str(encoder.save(Path(folder) / "model"))
        loads = {"two layers": {"layers": 2}, "ten tokens": {"max_length": 10}}
        if name == "qwen":
            loads["both ways"] = {"attention": "bidirectional"}
        for label, options in loads.items():
            loaded = Encoder.load(EncoderSettings(name=saved, **options))
            found[label] = embeddings(loaded.encode(TINY))
    return found


def minilm() -> dict:
    settings = EncoderSettings(name="minilm-l6")
    encoder = Encoder.load(settings)
    cut = settings.model_copy(update={"layers": 3, "pooling": "cls", "max_length": 16})
    return {
        "hash": model_hash(settings),
        "plain": embeddings(encoder.encode(TEXTS)),
        "with a prompt": embeddings(encoder.encode(TEXTS, prompt=PROMPT)),
        "three layers": embeddings(Encoder.load(cut).encode(TEXTS, tokens_per_forward=64)),
    }


def packing() -> dict:
    lengths = np.random.default_rng(0).integers(2, 40, 50).tolist()
    tokens = [Tokens([1] * length, 0) for length in lengths]
    return {
        f"joined {joined}, cost {cost}, budget {budget}": forward_passes(
            tokens, budget, Packing(joined, cost)
        )
        for joined, cost in ((True, 8), (False, 32), (False, 4096))
        for budget in (30, 256)
    }


def dropout() -> dict:
    torch.manual_seed(3)
    masks = {f"{shape}, {p}": keep_mask(shape, p) for shape in ((4, 6), (3, 5)) for p in (0.1, 0.5)}
    return {name: [kept.int(), factor] for name, (kept, factor) in masks.items()}


def attention() -> dict:
    """Blocks of two lengths, with dropout and without, and the gradients of query, key, value."""
    generator = torch.Generator().manual_seed(0)
    lengths = [torch.tensor([5, 3]), torch.tensor([2, 2, 2])]
    blocks = [
        Block.of(torch.zeros(2, 5), lengths[0], torch.nn.Identity()),
        Block.of(torch.zeros(3, 2), lengths[1], torch.nn.Identity()),
    ]
    drawn = [torch.randn(1, 2, 16, 4, generator=generator) for _ in range(4)]
    found = {}
    for dropped in (0.0, 0.2):
        torch.manual_seed(1)
        leaves = [x.clone().requires_grad_() for x in drawn[:3]]
        output, _ = block_attention(
            torch.nn.Identity(), *leaves, None, dropout=dropped, blocks=blocks
        )
        gradients = torch.autograd.grad(output, leaves, drawn[3].transpose(1, 2))
        named = zip(("output", "query", "key", "value"), (output, *gradients), strict=True)
        found[f"dropout {dropped}"] = {name: summary(x.detach()) for name, x in named}
    return found


CASES = {f"architecture {name}": partial(architecture, name) for name in ARCHITECTURES} | {
    "minilm-l6": minilm,
    "packing": packing,
    "dropout": dropout,
    "block attention": attention,
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    check("model", {case: CASES[case]()})
