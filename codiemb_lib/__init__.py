"""CoDiEmb brought to life: one text encoder trained for retrieval and similarity together."""

import lazy_loader

__version__ = "0.1.0"

# `train`, too, can be called: it is a room whose door is one function.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["train"],
    submod_attrs={
        "core": ["load_preset"],
        "data": ["load_dataset"],
        "fuse": ["merge"],
        "model": ["Encoder"],
    },
)
