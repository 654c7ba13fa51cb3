"""CoDiEmb brought to life: one text encoder trained for retrieval and similarity together.

    preset = load_preset("mini")
    run = train(preset, "codiemb", seed=0)
    encoder = Encoder.load(run / "model")

The rest stands in the rooms: `core`, `data`, `model`, `evaluate`, `train`, `fuse`, `space`, `draw`.
"""

import lazy_loader

__version__ = "0.1.0"

DOORS = {  # what most people want first; `train` can be called: it is a room with one main function
    "core": ["load_preset"],
    "data": ["load_dataset"],
    "fuse": ["merge"],
    "model": ["Encoder"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["train"], submod_attrs=DOORS
)
