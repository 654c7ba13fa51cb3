"""Records to checkpoints: one encoder trained for retrieval and similarity together.

The way through the room: a plan says which records share a step (`sampling`), their texts are drawn
and cut into forward passes (`batches`), the loss of their embeddings (`objectives`) becomes the
gradient of the encoder (`step`), and the loop does so to the end of a run (`loop`), on any devices
(`devices`), going on after a kill (`checkpoint`). `conflict` asks whether the tasks pull the same
way. The door is `train`, and the room itself can be called as that function.
"""

import sys
from types import ModuleType

import lazy_loader

# Raised when numbers are meant to change (CONTRIBUTING.md). 1: those of the first golden values.
# 2: 2026-12-01: what reads like a positive of a query is no negative of it in any batch.
# 3: 2026-12-01: of a query's neighbours in a batch only the passages that answer it are left out,
# not all of their row; the middle of an odd number of layers is one higher, as the authors count.
NUMERICS = 3

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["objectives"],
    submod_attrs={
        "batches": ["OptimizerSteps", "make_batch", "make_share"],
        "conflict": ["conflict", "cosine_by_layer", "training_gradient"],
        "devices": ["sparse_embedding_gradients"],
        "loop": ["train", "training_records"],
        "objectives": ["pro_loss"],
        "sampling": ["MixedTaskPlan", "PairedTaskPlan", "PlannedBatch", "SingleTaskPlan"],
        "step": ["backward", "batch_loss", "needs_middle"],
    },
)


class _Room(ModuleType):
    """A module that is called as its function `train`: `from codiemb_lib import train`."""

    def __call__(self, *arguments, **options):
        return self.train(*arguments, **options)


sys.modules[__name__].__class__ = _Room
