"""What the tests share: tiny random encoders of the architectures that presets name; registries."""

from __future__ import annotations

import os
import socket

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen2Tokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from codiemb_lib.core.files import project_root
from codiemb_lib.data.datasets import load_dataset
from codiemb_lib.model.encoder import Encoder


@pytest.fixture
def no_network(monkeypatch):
    """Whoever asks a socket for a connection, or for an address, fails."""

    def refuse(*_, **__):
        raise AssertionError("the network is blocked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The folder of built data sets, with `api-docs`, which takes seconds."""
    folder = tmp_path_factory.mktemp("cache")
    load_dataset("api-docs", cache=folder)
    return folder


@pytest.fixture
def registry(tmp_path):
    """Writes a registry: the project's own with some entries changed."""
    content = yaml.safe_load((project_root() / "data" / "registry.yaml").read_text())

    def write(**changes):
        for name, change in changes.items():
            content.setdefault(name.replace("_", "-"), {}).update(change)
        path = tmp_path / "registry.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


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


def tiny_tokenizer(characters: str = "") -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of a few words, all ASCII letters and some more characters."""
    letters = [chr(c) for c in range(97, 123)]
    pieces = [*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters), *characters]
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


def tiny_encoder(*, seed: int = 0, layers: int = 2, characters: str = "", **options) -> Encoder:
    """A random two-layer BERT of 16 dimensions, in evaluation mode."""
    tokenizer = tiny_tokenizer(characters)
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


@pytest.fixture
def make_encoder():
    return tiny_encoder


def pieces_tokenizer(*, eos: bool) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer as SentencePiece makes them; as in XLM-R, padding is id 1."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = [chr(c) for c in range(97, 123)]
    pieces = [*special, "▁", ":", *(f"▁{word}" for word in WORDS if word != ":"), *letters]
    scores = [(piece, -float(len(piece) == 1)) for piece in pieces]  # words before letters
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Strip(left=False, right=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if eos else "<s> $A",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
    )


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


def _xlm_roberta() -> tuple[XLMRobertaModel, PreTrainedTokenizerFast]:
    tokenizer = pieces_tokenizer(eos=True)
    sizes = SIZES | {"max_position_embeddings": 66}  # two of them lie before the first text's
    return XLMRobertaModel(
        XLMRobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, **sizes)
    ), tokenizer


def _bert() -> tuple[BertModel, PreTrainedTokenizerFast]:
    tokenizer = tiny_tokenizer()
    return BertModel(BertConfig(vocab_size=len(tokenizer), **SIZES)), tokenizer


def _minicpm() -> tuple[LlamaModel, PreTrainedTokenizerFast]:
    """A decoder of Llama's kind that looks both ways."""
    tokenizer = pieces_tokenizer(eos=False)
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=1, **SIZES)
    config.is_causal = False
    return LlamaModel(config), tokenizer


def _qwen() -> tuple[Qwen2Model, Qwen2Tokenizer]:
    """A causal decoder that shares its keys and values between heads; its tokens are bytes."""
    special = ["<|endoftext|>", "<|pad|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet, "Ġc", "Ġca"])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[("Ġ", "c"), ("Ġc", "a")],
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=64,
    )
    config = Qwen2Config(vocab_size=len(tokenizer), pad_token_id=1, num_key_value_heads=1, **SIZES)
    return Qwen2Model(config), tokenizer


ARCHITECTURES = {
    "bert": _bert,
    "xlm-roberta": _xlm_roberta,
    "minicpm": _minicpm,
    "qwen": _qwen,
}


def tiny_architecture(architecture: str, *, seed: int = 0, **options) -> Encoder:
    """A random three-layer encoder of 16 dimensions and 64 positions, in evaluation mode."""
    torch.manual_seed(seed)
    backbone, tokenizer = ARCHITECTURES[architecture]()
    for parameter in backbone.parameters():
        if parameter.ndim > 1:  # the usual start is so small that layers hardly matter
            torch.nn.init.normal_(parameter, std=0.3)
    return Encoder(backbone, tokenizer, **{"max_length": 32} | options).eval()


@pytest.fixture
def make_architecture():
    return tiny_architecture
