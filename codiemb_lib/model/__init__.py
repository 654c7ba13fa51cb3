"""Texts to unit vectors: the encoder, and a store of its embeddings."""

import lazy_loader

# Raised when numbers of this room are meant to change: what was computed under another one is
# stale. A line for each rise: its number, date and reason.
# 1: the numbers that the first golden values pin.
NUMERICS = 1

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "encoder": [
            "Encoder",
            "PACKAGED",
            "Packing",
            "Padded",
            "TextTokenizer",
            "forward_passes",
            "locate",
            "model_hash",
            "packaged_folder",
        ],
        "store": ["Embedder"],
    },
)
