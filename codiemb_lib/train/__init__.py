"""Records to checkpoints: objectives, which records share a step, the step, the loop."""

import sys
from types import ModuleType

import lazy_loader

# Raised when numbers of this room are meant to change: what was computed under another one is
# stale. A line for each rise: its number, date and reason.
# 1: the numbers that the first golden values pin.
NUMERICS = 1

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batches": ["OptimizerSteps", "make_batch", "make_share"],
        "conflict": ["conflict", "cosine_by_layer", "draw_shares"],
        "loop": ["train"],
        "objectives": ["pro_loss"],
        "sampling": ["MixedTaskPlan", "SingleTaskPlan", "Step"],
        "step": ["backward", "batch_loss", "lean_embeddings", "needs_middle"],
    },
)


class _Room(ModuleType):
    """The room can be called as its main function: `from codiemb_lib import train`."""

    def __call__(self, *arguments, **options):
        return self.train(*arguments, **options)


sys.modules[__name__].__class__ = _Room
