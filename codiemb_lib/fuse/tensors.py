"""Weights on disk: model folders as mappings that read one tensor at a time, and their writer.

A folder is any model of transformers or sentence-transformers with weights in safetensors, whole or
in shards. A tensor is a view of its file's pages, which leave the process with the tensor: whoever
walks through models in step holds one tensor of each, never a model.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from codiemb_lib.core import CodiembError, atomic_path
from codiemb_lib.model import parts

logger = logging.getLogger(__name__)

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
DTYPES |= {"U8": torch.uint8, "BOOL": torch.bool}
_INDEX = ".safetensors.index.json"  # says which tensor lies in which shard
_FLUSH = 1 << 25  # bytes after which the disk takes over, while others are worked out
_WORKERS = 4  # at most: each holds a tensor of every model, and few cores saturate the memory
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
COPIED_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".py"}


class FusionError(CodiembError, ValueError):
    """Models, or what is asked of them, do not fit together."""


class Lazy(Mapping[str, Tensor]):
    """A model with the names of another; each look at a tensor works it out, on any thread."""

    def __init__(self, like: Mapping[str, Tensor], work_out: Callable[[str], Tensor]) -> None:
        self.places: dict[str, Any] = dict.fromkeys(like)  # by name; of a folder, where it lies
        self._work_out = work_out
        self.folder: Path | None = getattr(like, "folder", None)  # which messages name
        self.kept: list[int] | None = None  # the models in a greedy soup, by number
        self.coefficients: Tensor | None = None  # of deltas, where they were learned

    def __getitem__(self, name: str) -> Tensor:
        return self._work_out(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class Place(NamedTuple):
    """Where a tensor lies on disk."""

    file: Path
    key: str  # its name in the file
    start: int  # of its bytes
    dtype: torch.dtype
    shape: tuple[int, ...]


class Folder(Lazy):
    """The weights of a model folder; a tensor is read from disk each time it is asked for.

    What is read are the transformer and the other parts that modules.json names; the tensors of the
    latter have their folder in front, as in "2_Dense/linear.weight". Folders whose weights are
    missing, pickled, damaged or there twice raise FusionError.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__({}, lambda name: read_tensor(self.places[name]))
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FusionError(f"{folder}: expected a model folder, found none.")
        self.transformer = parts(self.folder)[0][1]
        files = files_of(self.folder)
        self.files = [file for file in files if file.suffix == ".safetensors"]
        whole = {file.parent for file in self.files}
        pickles = [p for p in files if p.suffix in _PICKLES and p.parent not in whole]
        if pickles or not self.files:
            found = f"{pickles[0]}, pickled weights, which run code" if pickles else "none"
            raise FusionError(
                f"{folder}: expected weights in safetensors, found {found}. Save the model again."
            )
        for file in self.files:
            for place in read_places(file):
                if place.key.endswith("position_ids"):
                    positions = read_tensor(place).flatten().long()
                    if torch.equal(positions, torch.arange(positions.numel())):
                        continue  # older libraries stored it, newer ones count
                name = (self.within(file).parent / place.key).as_posix()
                if name in self.places:
                    raise FusionError(
                        f"{folder}: expected each tensor once, found {name} in {file.name} and in "
                        f"{self.places[name].file.name}. Remove the file that is out of date."
                    )
                self.places[name] = place

    def within(self, file: Path, transformer: Path = Path()) -> Path:
        """The place of a file in a folder that has the transformer's files in `transformer`."""
        ours = file.parent == self.transformer
        return transformer / file.name if ours else file.relative_to(self.folder)


def files_of(folder: Path) -> list[Path]:
    """The files of a model: those of its folder and of its parts, not of other subfolders.

    These may be checkpoints of the training that made it, or the model in other formats. A link
    may lead within the folder, or into the cache of the Hub whose snapshot the folder is.
    """
    others = [path for _, part in parts(folder) if part != folder for path in part.rglob("*")]
    found = sorted(path for path in [*folder.glob("*"), *others] if path.is_file())
    home = folder.resolve()
    for path in found:
        if not any(map(path.resolve().is_relative_to, (home, home.parent.parent / "blobs"))):
            raise FusionError(
                f"{path}: expected a file of the model, found a link to {path.resolve()}, which "
                "would be copied into the merged model. Remove it, or put the file in its place."
            )
    return found


def read_places(file: Path) -> list[Place]:
    """The tensors of a safetensors file, in the order of their bytes.

    The official reader vouches that these follow each other up to the end of the file.
    """
    places, end = [], file.stat().st_size
    try:
        with safe_open(file, "numpy") as opened:
            for key in reversed(opened.offset_keys()):
                part = opened.get_slice(key)
                shape, dtype = tuple(part.get_shape()), DTYPES[part.get_dtype()]
                end -= math.prod(shape) * dtype.itemsize
                places.append(Place(file, key, end, dtype, shape))
    except (SafetensorError, KeyError) as error:
        raise FusionError(
            f"{file}: expected whole weights in safetensors, of the types {', '.join(DTYPES)}, "
            f"found {error}. Copy or save the model again."
        ) from error
    return places[::-1]


def read_tensor(place: Place) -> Tensor:
    """One tensor as a view of its file's pages; what is written to it stays in this process."""
    size = math.prod(place.shape) * place.dtype.itemsize
    file = str(place.file)  # a Path would be resolved each time
    pages = np.memmap(file, np.uint8, "c", place.start, size)
    return torch.from_numpy(pages).view(place.dtype).view(place.shape)


def check_alike(base: Mapping[str, Tensor], models: Sequence[Mapping[str, Tensor]]) -> None:
    """Refuse models whose names, shapes, kinds of numbers, or integers are not the base's.

    One that is the base, such as an untrained adapter, counts as any other, with a warning.
    """
    expected = _described(base)
    for label, model in zip(labels(base, models)[1:], models, strict=True):
        found = _described(model)
        problems = [
            f"{name} ({found.get(name, 'missing')} beside {expected.get(name, 'missing')})"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        problems = problems or [
            f"{name} (other numbers)"
            for name, description in expected.items()
            if description.startswith("integer") and not torch.equal(model[name], base[name])
        ]
        if not problems and all(torch.equal(model[n], base[n].to(model[n].dtype)) for n in base):
            logger.warning("%s: expected a trained model, found the base's weights.", label)
        if problems:
            raise FusionError(
                f"{label}: expected the names, shapes, kinds and integers of the base's tensors, "
                f"found {len(problems)} that differ: {', '.join(problems[:8])}. Name the base that "
                "it was trained from, and save both with the same head, or without one."
            )


def _described(model: Mapping[str, Tensor]) -> dict[str, str]:
    """By name, the kind and shape of a tensor."""
    tensors = model.places if isinstance(model, Folder) else model
    return {
        name: f"{'floating' if t.dtype.is_floating_point else 'integer'} {[*t.shape]}"
        for name, t in tensors.items()
    }


def labels(base: Mapping[str, Tensor], models: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """What messages call the base and the models."""
    names = ["base", *(f"checkpoint {j}" for j in range(len(models)))]
    folders = [getattr(model, "folder", None) for model in (base, *models)]
    return [f"{n} ({folder})" if folder else n for n, folder in zip(names, folders, strict=True)]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are in: float32, or float64 where the numbers are."""
    return torch.promote_types(dtype, torch.float32)


def write_model(
    output: Path,
    weights: Mapping[str, Tensor],
    *,
    like: Folder,
    settings: Path,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write a model folder, a few tensors at a time, whole or not at all.

    Files, order and types of numbers are those of `like`; configurations, tokenizer and modules are
    copied from `settings`; `texts` are further files, by their names.
    """
    with atomic_path(output) as temporary:
        temporary.mkdir()
        home = parts(settings)[0][1].relative_to(settings)
        copied = [p for p in files_of(settings) if p.suffix in COPIED_SUFFIXES]
        targets = {p: p.relative_to(settings) for p in copied if not p.name.endswith(_INDEX)}
        written = [p for p in files_of(like.folder) if p.name.endswith((".safetensors", _INDEX))]
        targets |= {path: like.within(path, home) for path in written}
        for path, place in targets.items():
            target = temporary / place
            target.parent.mkdir(exist_ok=True, parents=True)
            if path in like.files:
                contents = {name: p for name, p in like.places.items() if p.file == path}
                write_tensors(target, contents, weights)
            else:
                shutil.copyfile(path, target)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
    return output


def write_tensors(file: Path, contents: Mapping[str, Place], weights: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, a few tensors at a time, each on a thread of its own.

    `contents` has key, type and shape in the file by the tensor's name among the weights.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for place in contents.values():
        begin, end = end, end + math.prod(place.shape) * place.dtype.itemsize
        entry = {"dtype": names[place.dtype], "shape": place.shape, "data_offsets": [begin, end]}
        header[place.key] = entry
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of eight
    start = 8 + len(text)

    def write(name: str, place: Place) -> None:
        tensor = cast(name, weights[name], place.dtype).contiguous()
        with file.open("r+b") as part:
            part.seek(start + header[place.key]["data_offsets"][0])
            part.write(tensor.reshape(-1).view(torch.uint8).numpy())

    flushes: list[Future[None]] = []
    with file.open("wb") as stream, ThreadPoolExecutor(1) as disk, _single_threads() as pool:
        os.pwrite(stream.fileno(), len(text).to_bytes(8, "little") + text, 0)
        done = pool.map(write, contents, contents.values())
        for place, _ in zip(contents.values(), done, strict=True):
            end = start + header[place.key]["data_offsets"][1]
            if end > _FLUSH * (len(flushes) + 1):
                flushes.append(disk.submit(os.fsync, stream.fileno()))
    for flush in flushes:
        flush.result()


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A merged tensor in the type of numbers that its model is stored in."""
    stored = tensor.to(dtype)
    if stored.dtype != tensor.dtype and stored.is_floating_point() and not stored.isfinite().all():
        raise FusionError(
            f"{name}: expected numbers that {dtype} holds, found up to {tensor.abs().max():.4g}. "
            "Merge with a smaller scale or smaller weights, or store the checkpoints as bfloat16."
        )
    return stored


@contextmanager
def _single_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for whole tensors: one more than cores, since while one writes the others compute.

    On each torch works alone: split among all cores, a tensor would keep them waiting.
    """
    threads = torch.get_num_threads()
    workers = min(threads + 1, _WORKERS)
    try:
        with ThreadPoolExecutor(workers, "", torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # the number is this thread's own and the process's
