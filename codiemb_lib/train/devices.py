"""Devices, processes and precision of a run: all in a file that `accelerate config` writes."""

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from codiemb_lib.core import Preset, PresetError, preset_path, write_text


def launch(preset: Preset, variant: str, seed: int, config: str) -> None:
    """As `train`, in processes of their own, by `accelerate launch`.

    They go on where this process is killed; as they hold the run's lock, nobody trains it twice.
    """
    candidates = preset_path(f"accelerate/{config}"), Path(config)
    file = next(filter(Path.is_file, candidates), None)
    if file is None:
        known = sorted(path.stem for path in preset_path("accelerate/x").parent.glob("*.yaml"))
        raise PresetError(
            f"accelerate: expected the path of a configuration, or one of {known}, found "
            f"{config!r}. `accelerate config --config_file PATH` writes one."
        )
    with tempfile.TemporaryDirectory() as scratch:
        resolved = Path(scratch) / f"{preset.name}.yaml"  # as it is, not as its file says
        write_text(resolved, yaml.safe_dump(preset.model_dump(mode="json"), default_style='"'))
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
        command += ["-m", "codiemb_lib.train", "--preset", str(resolved), "--variant", variant]
        command += ["--seed", str(seed), "--no-progress"]
        subprocess.run(command, check=True)


def make_accelerator(preset: Preset, folder: Path) -> Accelerator:
    """Devices and precision, as `accelerate launch` said; one process without it."""
    trackers = [*preset.training.trackers]
    known = [*map(str, get_available_trackers())]
    if missing := [name for name in trackers if name not in known]:
        raise PresetError(
            f"preset {preset.name!r}: expected trackers that are installed, {known}, "
            f"found {missing}. Install one by its name: `pip install {missing[0]}`."
        )
    # Buffers are constants, and ranks may differ in their number of forward passes.
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        log_with=trackers or None,
        project_dir=folder,
        kwargs_handlers=[parallel],
    )
    kind, precision = accelerator.distributed_type, accelerator.mixed_precision
    accumulation = accelerator.gradient_accumulation_steps
    first_fsdp = kind == "FSDP" and not accelerator.is_fsdp2
    if precision not in ("no", "bf16") or kind == "DEEPSPEED" or first_fsdp or accumulation != 1:
        raise PresetError(
            "expected a configuration of accelerate with precision `no` or `bf16`, without "
            "DeepSpeed and accumulation, and FSDP only with `fsdp_version: 2`; found "
            f"{precision!r}, {kind}, accumulation {accumulation}, which belongs into the preset."
        )
    if accelerator.is_fsdp2 and precision == "bf16":
        plugin = accelerator.state.fsdp_plugin  # else unit vectors would be rounded to bf16
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )
    return accelerator


def sparse_embedding_gradients(accelerator: Accelerator, encoder: nn.Module) -> None:
    """Let forward passes share one dense gradient of the vocabulary's embeddings.

    Each pass would otherwise fill and add one of the whole vocabulary for its few tokens, which
    small encoders feel on a CPU. Several ranks exchange dense ones; accelerators have fast memory.
    """
    if accelerator.distributed_type == "NO" and accelerator.device.type == "cpu":
        words = encoder.backbone.get_input_embeddings()
        words.sparse = words.weight.requires_grad
