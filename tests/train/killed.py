"""Training that is killed at a given moment, without a word, as by a machine that stops.

`python -m tests.train.killed VARIANT OWNER NAME AT`: this process, of several ranks the first, dies
at the AT-th call of OWNER.NAME. With several moments, each of them ROOT OWNER NAME AT, each is that
of a child in a project of its own. With SHARDED=1 the ranks share the weights (FSDP2).
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from accelerate import state
from accelerate.utils import DistributedType

from codiemb_lib import core
from codiemb_lib.core import load_preset
from codiemb_lib.model import Encoder
from codiemb_lib.train import checkpoint, loop

OWNERS = {
    "Checkpoints": checkpoint.Checkpoints,
    "Encoder": Encoder,
    "Path": Path,
    "checkpoint": checkpoint,
    "core": core,
    "loop": loop,
    "shutil": shutil,
}


def train_until(variant: str, owner: str, name: str, at: str) -> None:
    original, left = getattr(OWNERS[owner], name), int(at)

    def wrapped(*arguments, **options):
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    if os.environ.get("RANK", "0") == "0":
        setattr(OWNERS[owner], name, wrapped)
    loop.train(load_preset("tiny"), variant, 0, progress=False, accelerate="")


def shard() -> None:
    """accelerate shards on GPUs and their like alone; what it does then, CPUs can do as well."""
    os.environ |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true"}
    os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_VERSION": "2"}
    os.environ |= {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_RESHARD_AFTER_FORWARD": "false"}
    plain = state.AcceleratorState.__init__

    def sharded(self, *arguments, fsdp_plugin=None, **options):
        plain(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    state.AcceleratorState.__init__ = sharded


def main(variant: str, *moments: str) -> None:
    if os.environ.get("SHARDED"):
        shard()
    if len(moments) == 3:
        train_until(variant, *moments)
        return
    for root, *moment in zip(*[iter(moments)] * 4, strict=True):
        if os.fork() == 0:  # which costs nothing, where a new Python would take seconds to import
            os.environ["CODIEMB_ROOT"] = root
            train_until(variant, *moment)
            os._exit(0)
        assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL, moment


if __name__ == "__main__":
    main(*sys.argv[1:])
