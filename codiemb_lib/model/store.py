"""Embeddings of any number of texts by one encoder, kept on disk: no text is encoded twice."""

import io
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from codiemb_lib.core import EncoderSettings, atomic_path, sha256_text, versions
from codiemb_lib.model import NUMERICS
from codiemb_lib.model.encoder import Encoder, check_texts
from codiemb_lib.model.loading import as_settings, locate, model_hash
from codiemb_lib.model.saved import EncoderError, read_saved

CHUNK = 16_384  # texts that are tokenised, encoded and kept together


class Embedder:
    """An encoder, loaded (on the accelerator, if there is one) when a text is not in the store.

    Files of the folder `store` are named after all that decides them: `key`, which is the SHA-256
    of the model's files, the settings and our code, then prompt and texts. So nothing in it is ever
    out of date, and all of it may be deleted at any time. `prompts` and `default_prompt`, "" if it
    has none, are those that the model's own files name.
    """

    def __init__(self, source: EncoderSettings | str | Path, store: str | Path | None = None):
        self.settings = as_settings(source)
        saved = read_saved(locate(self.settings))
        self.prompts: dict[str, str] = saved["prompts"]
        self.default_prompt: str = self.prompts.get(saved["default_prompt_name"], "")
        self.model_hash = model_hash(self.settings)
        self.key = sha256_text(
            self.model_hash,
            self.settings.model_dump_json(exclude={"name", "revision", "lora"}),
            f"{NUMERICS} {versions()}",
        )
        self.store = Path(store) / self.key[:16] if store else None

    @cached_property
    def encoder(self) -> Encoder:
        """The loaded encoder."""
        loaded = Encoder.load(self.settings).eval()
        return loaded.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")

    def embed(
        self, texts: Iterable[str], *, prompt: str | None = None, progress: bool = False
    ) -> np.ndarray:
        """Embeddings of texts, (n, D) float32 of unit length; as `Encoder.encode` has prompts.

        Beside the result, memory holds those of one chunk of texts, and its tokens.
        """
        texts = check_texts(texts)
        prompt = self.default_prompt if prompt is None else prompt
        rows: dict[str, int] = {}  # of distinct texts
        places = [rows.setdefault(text, len(rows)) for text in texts]
        distinct = list(rows)
        starts = range(0, len(distinct), CHUNK)
        output = None
        for start in tqdm(starts, "chunks", leave=False, disable=not progress or len(starts) < 2):
            chunk = self._chunk(distinct[start : start + CHUNK], prompt, progress)
            if output is None:
                output = np.empty((len(distinct), chunk.shape[1]), np.float32)
            output[start : start + CHUNK] = chunk
        return output if len(distinct) == len(texts) else output[places]

    def _chunk(self, texts: list[str], prompt: str, progress: bool) -> np.ndarray:
        file = self.store and self.store / f"{sha256_text(prompt, *texts)}.npy"
        if file and file.is_file():
            try:
                if (vectors := np.load(file)).ndim != 2 or len(vectors) != len(texts):
                    raise ValueError(f"expected {len(texts)} vectors, found {vectors.shape}")
                return vectors
            except Exception as error:  # NumPy raises what its parser of the header raises
                raise EncoderError(f"{file}: {error}. Delete it: it is made anew.") from error
        tokens = 2048 if self.encoder.device.type == "cpu" else 32_768  # of a forward pass
        vectors = self.encoder.encode(
            texts, prompt=prompt, tokens_per_forward=tokens, progress=progress
        )
        if file:
            content = io.BytesIO()  # np.save itself is silent on a full disk
            np.save(content, vectors)
            with atomic_path(file) as temporary:
                temporary.write_bytes(content.getbuffer())
        return vectors
