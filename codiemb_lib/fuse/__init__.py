"""Checkpoints to one model: the methods, model folders read by the tensor, recipes, studies."""

import lazy_loader

# Raised when numbers of this room are meant to change: what was computed under another one is
# stale. A line for each rise: its number, date and reason.
# 1: the numbers that the first golden values pin.
NUMERICS = 1

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "merges": ["path"],
        "methods": ["FusionError", "check_options", "delta_guided_weights", "fuse", "options_of"],
        "recipes": ["fuse_recipe"],
        "study": ["candidates", "fixed_settings"],
        "tensors": ["Folder"],
    },
)
