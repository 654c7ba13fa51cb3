"""Texts to unit vectors.

`Encoder.load("minilm-l6")` finds a model's files and checks them (`loading`, `saved`). It cuts
texts into tokens, packs these into forward passes (`tokens`, `blocks`), pools and scales.
`Embedder` keeps its embeddings on disk. Models are saved as sentence-transformers folders.
"""

import lazy_loader

# Raised when numbers are meant to change (CONTRIBUTING.md). 1: those of the first golden values.
# 2: 2026-12-01: the hash of the packaged encoder covers all of its files; no embedding moved.
# 3: 2026-12-01: the middle of an odd number of layers is one higher, as the authors count.
NUMERICS = 3

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "encoder": ["Encoder"],
        "loading": ["PACKAGED", "locate", "model_hash"],
        "saved": ["MODULES", "parts", "stated", "statements"],
        "store": ["Embedder"],
        "tokens": ["Packing", "Padded", "TextTokenizer", "forward_passes"],
    },
)
