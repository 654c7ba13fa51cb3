"""Checkpoints to one model.

`merge` takes a base and models that were trained from it, as mappings or as folders, and one of the
methods; `fuse_recipe` reads the same from a YAML file. A preset's merges go through `save_merge`,
and `try_on_dev` compares ways to merge the same runs.
"""

import lazy_loader

# Raised when numbers are meant to change (CONTRIBUTING.md). 1: those of the first golden values.
NUMERICS = 1

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "delta": ["delta_guided_weights"],
        "merging": ["fuse_recipe", "merge", "merge_weights"],
        "ranking": ["candidates", "fixed_settings"],
        "study": ["merged_variants", "open_runs", "path", "save_merge", "study_of", "try_on_dev"],
        "tensors": ["Folder"],
    },
)
