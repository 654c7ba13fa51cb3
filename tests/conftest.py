"""What the tests share: a tiny random encoder, and a project folder of their own."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from codiemb_lib.encoder import Encoder

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "the",
    "a",
    "of",
    "to",
    "in",
    "is",
    "it",
    "query",
    ":",
    "find",
    "cat",
    "dog",
    "car",
    "bus",
    "old",
    "new",
    "fast",
    "slow",
    "red",
    "blue",
]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of a few words and all ASCII letters."""
    letters = [chr(c) for c in range(97, 123)]
    pieces = [*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(t, vocabulary[t]) for t in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )


@pytest.fixture
def make_encoder():
    """A function that makes a random two-layer BERT of 16 dimensions, in evaluation mode."""

    def make(*, seed: int = 0, layers: int = 2, **options) -> Encoder:
        tokenizer = tiny_tokenizer()
        torch.manual_seed(seed)
        backbone = BertModel(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                num_hidden_layers=layers,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
            )
        )
        return Encoder(backbone, tokenizer, **{"max_length": 32} | options).eval()

    return make
