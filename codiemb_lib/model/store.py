"""Embeddings of any number of texts by one encoder, kept on disk: no text is encoded twice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from codiemb_lib.core import EncoderSettings, atomic_path, sha256_text, versions
from codiemb_lib.model import NUMERICS
from codiemb_lib.model.encoder import (
    Encoder,
    EncoderError,
    check_texts,
    locate,
    model_hash,
    saved_prompts,
)

CHUNK = 16_384  # texts that are tokenised, encoded and kept together

_TOKENS = {"cpu": 2048}  # of a forward pass
_TOKENS_ELSEWHERE = 32_768


class Embedder:
    """An encoder, loaded when a text is not in the store.

    Args:
        settings: Which encoder; it runs on the accelerator, if there is one.
        store: A folder for embeddings, or None. Its files are named after the content of the model,
            the settings and the texts, so that nothing in it is ever out of date, and all of it may
            be deleted at any time.

    Attributes:
        key: SHA-256 of all that decides a text's embedding, but for prompt and text: the model's
            files, the settings, our code.
    """

    def __init__(self, settings: EncoderSettings, store: str | Path | None = None):
        self.settings = settings
        self.model_hash = model_hash(settings)
        self.key = sha256_text(
            self.model_hash,
            settings.model_dump_json(exclude={"name", "revision", "lora"}),
            f"{NUMERICS} {versions()}",
        )
        self.store = Path(store) / self.key[:16] if store else None

    @cached_property
    def encoder(self) -> Encoder:
        """The loaded encoder.

        Raises:
            EncoderError: As for `Encoder.load`.
        """
        loaded = Encoder.load(self.settings).eval()
        return loaded.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")

    @cached_property
    def prompts(self) -> dict[str, str]:
        """The named prompts of a sentence-transformers folder, without loading its weights."""
        return saved_prompts(locate(self.settings))[0]

    @cached_property
    def default_prompt(self) -> str:
        """The prompt that such a folder has for texts without one; "" if it has none."""
        prompts, default = saved_prompts(locate(self.settings))
        return prompts.get(default, "")

    def embed(
        self, texts: Sequence[str], *, prompt: str | None = None, progress: bool = False
    ) -> np.ndarray:
        """Embeddings of texts, (n, D) float32 of unit length; as `Encoder.encode` has prompts.

        Beside the result, memory holds those of one chunk of texts, and its tokens.

        Raises:
            EncoderError: There is nothing to encode, something is no text, the encoder cannot be
                loaded, or a file of the store is damaged.
        """
        check_texts(texts)
        prompt = self.default_prompt if prompt is None else prompt
        distinct = list(dict.fromkeys(texts))
        starts = range(0, max(1, len(distinct)), CHUNK)
        output = None
        bar = tqdm(starts, desc="chunks", disable=not progress or len(starts) < 2, leave=False)
        for start in bar:
            chunk = self._chunk(distinct[start : start + CHUNK], prompt, progress)
            if output is None:
                output = np.empty((len(distinct), chunk.shape[1]), np.float32)
            output[start : start + CHUNK] = chunk
        if len(distinct) == len(texts):
            return output
        row = {text: i for i, text in enumerate(distinct)}
        return output[[row[text] for text in texts]]

    def _chunk(self, texts: list[str], prompt: str, progress: bool) -> np.ndarray:
        file = self.store and self.store / f"{sha256_text(prompt, *texts)}.npy"
        if file and file.is_file():
            return _kept(file, len(texts))
        tokens = _TOKENS.get(self.encoder.device.type, _TOKENS_ELSEWHERE)
        vectors = self.encoder.encode(
            texts, prompt=prompt, tokens_per_forward=tokens, progress=progress
        )
        if file:
            with atomic_path(file) as temporary:
                np.save(temporary, vectors)
        return vectors


def _kept(file: Path, count: int) -> np.ndarray:
    try:
        vectors = np.load(file, allow_pickle=False)
        if vectors.ndim != 2 or len(vectors) != count:
            raise ValueError(f"an array of shape {vectors.shape}")
    except Exception as error:  # NumPy raises what its parser of the header raises
        raise EncoderError(
            f"{file}: expected the embeddings of {count} texts, found: {error}. Delete the file: "
            "its texts are then encoded anew."
        ) from error
    return vectors
