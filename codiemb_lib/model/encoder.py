"""The encoder: a transformer, a pooling of its token states, prompts, and unit-length output."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from codiemb_lib.core import EncoderSettings, atomic_path, unknown
from codiemb_lib.model.blocks import Block, first_position, prepare
from codiemb_lib.model.loading import as_settings, locate, read_model, write_model
from codiemb_lib.model.saved import POOLING_KEYS, EncoderError, read_saved, refuse, write_saved
from codiemb_lib.model.tokens import Packing, Padded, TextTokenizer, forward_passes


class Encoder(nn.Module):
    """Texts in, unit vectors out.

    Args:
        backbone, tokenizer: Of transformers; the output of the former has `last_hidden_state`.
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
        refuse(pooling not in POOLING_KEYS, unknown("pooling", pooling, POOLING_KEYS))
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
    def load(cls, source: EncoderSettings | str | Path) -> Self:
        """Load an encoder: `Encoder.load("minilm-l6")`, or a local folder, or `"org/model"`.

        What settings leave open, and named prompts, come from the folder's own files. A relative
        folder is looked for in the project's. Weights are read from safetensors alone; code that
        comes with a model runs only where the settings trust it. What is unknown, damaged, or
        cannot be run is refused by an EncoderError.
        """
        settings = as_settings(source)
        folder = locate(settings)
        options = read_saved(folder)
        named = [settings.pooling] if settings.pooling else options["pooling"]
        refuse(
            len(named) != 1,
            f"{settings.name}: expected `pooling` in the preset, one of {sorted(POOLING_KEYS)}, "
            f"since the model's own files name {' and '.join(named) or 'none'}.",
        )
        options["pooling"] = named[0]
        refuse(
            named[0] not in POOLING_KEYS, f"{folder}: {unknown('pooling', named[0], POOLING_KEYS)}"
        )
        if settings.include_prompt is not None:
            options["include_prompt"] = settings.include_prompt
        backbone, tokenizer = read_model(settings, folder)
        refuse(
            tokenizer.pad_token_id is None,
            f"{folder}: expected a token for padding, found none. Name one as `pad_token` in its "
            "tokenizer_config.json.",
        )
        positions = getattr(backbone.config, "max_position_embeddings", None) or 10**6
        positions -= first_position(backbone)
        own = options["max_length"] or tokenizer.model_max_length  # huge if its files name none
        options["max_length"] = settings.max_length or min(own, positions)
        refuse(
            options["max_length"] > positions,
            f"{settings.name}: expected max_length up to the model's {positions} positions, found "
            f"{settings.max_length}. Lower it in the preset.",
        )
        return cls(backbone, tokenizer, **options)

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
        # The tokens that a device could take in the time that a block costs, or a lone one's pass.
        on_cpu = 8 if self.joins_blocks else 32
        return Packing(self.joins_blocks, on_cpu if self.device.type == "cpu" else 4096)

    def forward(self, blocks: Sequence[Padded], *, middle: bool = False) -> tuple[Tensor, ...]:
        """Unit vectors of all blocks' texts: (final,), each (B, D); (final, middle) on demand.

        The middle layer is index n // 2 of the n = L + 1 hidden states, as the authors count.
        """
        padded = [[torch.from_numpy(part) for part in block] for block in blocks]
        if self.joins_blocks:
            states = self._joined(padded, middle)
        else:
            states = [_chosen(self._alone(*block, every=middle), middle) for block in padded]
        pooled = []
        for block, of_block in zip(padded, states, strict=True):
            mask = self._pooled_tokens(*block)
            pooled.append([self.pool(state, mask) for state in of_block])
        return tuple(
            functional.normalize(torch.cat(parts), dim=-1) for parts in zip(*pooled, strict=True)
        )

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """One vector a text, (B, D), of token states (B, T, D) and of which count, (B, T)."""
        states = states.float()
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "last":
            last = mask.sum(1) - 1
            return states[torch.arange(len(states), device=states.device), last]
        weights = mask.unsqueeze(-1).float()
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

    @torch.no_grad()
    def token_states(self, block: Padded) -> tuple[list[Tensor], Tensor]:
        """What :meth:`pool` takes, of every layer: states (B, T, D), and which count, (B, T).

        Layer 0 are the input embeddings. All is float32 and on the CPU.
        """
        padded = [torch.from_numpy(part) for part in block]
        layers = self._alone(*padded, every=True).hidden_states
        return [states.float().cpu() for states in layers], self._pooled_tokens(*padded).cpu()

    def _pooled_tokens(self, ids: Tensor, lengths: Tensor, prompts: Tensor) -> Tensor:
        """Which tokens of a block are pooled, (B, T)."""
        positions = torch.arange(ids.shape[1])
        mask = positions < lengths[:, None]
        if not self.include_prompt and self.pooling == "mean":
            mask = mask & (positions >= prompts[:, None])
        return self._moved(mask)

    def _alone(self, ids: Tensor, lengths: Tensor, prompts: Tensor, *, every: bool):
        """The backbone's output for one block, with the states of `every` layer or of the last."""
        mask = torch.arange(ids.shape[1]) < lengths[:, None]  # (B, T)
        return self.backbone(
            input_ids=self._moved(ids),
            attention_mask=self._moved(mask.long()),
            output_hidden_states=every,
        )

    def _joined(self, padded: Sequence[Sequence[Tensor]], middle: bool) -> list[list[Tensor]]:
        """Token states of each block, from one pass over the tokens of all."""
        shapes = [ids.shape for ids, *_ in padded]
        first = first_position(self.backbone)
        positions = [torch.arange(first, first + T).repeat(B) for B, T in shapes]
        output = self.backbone(
            input_ids=self._moved(torch.cat([ids.flatten() for ids, *_ in padded])[None]),  # (1, N)
            position_ids=self._moved(torch.cat(positions)[None]),
            output_hidden_states=middle,
            blocks=[Block.of(ids, lengths, self._moved) for ids, lengths, _ in padded],
        )
        sizes = [B * T for B, T in shapes]
        layers = [states.squeeze(0).split(sizes) for states in _chosen(output, middle)]
        return [
            [piece.unflatten(0, shape) for piece in pieces]
            for shape, *pieces in zip(shapes, *layers, strict=True)
        ]

    def _moved(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)

    @torch.no_grad()  # inference mode would leave its mark on weights that are sharded
    def encode(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        tokens_per_forward: int = 2048,
        progress: bool = False,
    ) -> np.ndarray:
        """Embeddings of texts, (n, D) float32 of unit length, without gradient or dropout.

        Without a `prompt` the model's default one is taken, if it has one; "" is none.
        """
        texts = check_texts(texts)
        if prompt is None:
            prompt = self.prompts.get(self.default_prompt_name, "")
        training = self.training
        self.eval()
        rows: dict[str, int] = {}  # of distinct texts
        places = [rows.setdefault(text, len(rows)) for text in texts]
        tokens = self.tokenizer([*rows], [prompt] * len(rows))
        output = np.empty((len(rows), self.dimension), dtype=np.float32)
        passes = forward_passes(tokens, tokens_per_forward, self.packing)
        for blocks in tqdm(passes, desc="encode", disable=not progress, leave=False):
            (final,) = self([self.tokenizer.pad([tokens[i] for i in block]) for block in blocks])
            output[np.concatenate(blocks)] = final.float().cpu().numpy()
        self.train(training)
        return output[places]

    def save(self, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> Path:
        """Write a sentence-transformers model, whole or not at all; returns its folder.

        A model that stands there is replaced; an EncoderError is raised where anything else does.
        Adapters are added to the weights that they adapt; the encoder keeps both as they are.
        `weights` are those of the whole backbone, where its own are sharded over devices.
        """
        folder = Path(folder)
        found = sorted(os.listdir(folder)) if folder.is_dir() else ["a file"] * folder.exists()
        refuse(
            found and not {"modules.json", "config.json"} & {*found},
            f"{folder}: expected a new or an empty folder, or a model to replace, found "
            f"{found[:8]}. Choose another folder.",
        )
        with atomic_path(folder) as temporary:
            write_model(temporary, self.backbone, self.tokenizer.base, weights)
            write_saved(temporary, self)
        return folder


def _chosen(output, middle: bool) -> list[Tensor]:
    """The backbone's token states that count: [last], or [last, middle]."""
    states = [output.last_hidden_state]
    if middle:
        states.append(output.hidden_states[len(output.hidden_states) // 2])
    return states


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list; refuse one text alone, none, and what is no text."""
    refuse(isinstance(texts, str), "expected a list of texts, found one text: put it in brackets.")
    texts = [*texts]
    refuse(not texts, "expected at least one text to encode, found none.")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise EncoderError(f"expected texts, found {text!r} at place {place}. Leave it out.")
    return texts
