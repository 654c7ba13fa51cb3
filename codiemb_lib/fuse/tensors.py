"""Weights on disk: model folders as mappings that read one tensor at a time, and their writer.

A folder is any model of transformers or sentence-transformers with weights in safetensors, whole or
in shards. A tensor is a view of its file's pages, which leave the process with the tensor: whoever
walks through models in step holds one tensor of each, never a model.
"""

from __future__ import annotations

import json
import logging
import math
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

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
        self._names = dict.fromkeys(like)
        self._work_out = work_out
        self.folder: Path | None = getattr(like, "folder", None)  # which messages name
        self.kept: list[int] | None = None  # the models in a greedy soup, by number

    def __getitem__(self, name: str) -> Tensor:
        return self._work_out(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Place(NamedTuple):
    """Where a tensor lies on disk."""

    file: Path
    key: str  # its name in the file
    start: int  # of its bytes
    dtype: torch.dtype
    shape: tuple[int, ...]


class Folder(Mapping[str, Tensor]):
    """The weights of a model folder; a tensor is read from disk each time it is asked for.

    What is read are the transformer and the other parts that modules.json names; the tensors of the
    latter have their folder in front, as in "2_Dense/linear.weight". Folders whose weights are
    missing, pickled, damaged or there twice raise FusionError.
    """

    def __init__(self, folder: str | Path) -> None:
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
        self.places: dict[str, Place] = {}
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

    def __getitem__(self, name: str) -> Tensor:
        return read_tensor(self.places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


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
    """The tensors of a safetensors file, in the order of their bytes, from its header.

    Layout: 8 bytes, the header's length; the header in JSON; the tensors' bytes.
    """
    try:
        with safe_open(file, "pt"), file.open("rb") as stream:  # the official reader checks it
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        return [
            Place(file, key, 8 + length + e["data_offsets"][0], DTYPES[e["dtype"]], (*e["shape"],))
            for key, e in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        ]
    except (SafetensorError, KeyError, OSError) as error:
        raise FusionError(
            f"{file}: expected whole weights in safetensors, of the types {', '.join(DTYPES)}, "
            f"found {error}. Copy or save the model again."
        ) from error


def read_tensor(place: Place) -> Tensor:
    """One tensor as a view of its file's pages; what is written to it stays in this process."""
    count = math.prod(place.shape)
    if not count:
        return torch.empty(place.shape, dtype=place.dtype)
    before = place.start % mmap.ALLOCATIONGRANULARITY  # where a map may begin
    with place.file.open("rb") as stream:
        size, offset = before + count * place.dtype.itemsize, place.start - before
        pages = mmap.mmap(stream.fileno(), size, offset=offset, access=mmap.ACCESS_COPY)
    tensor = torch.frombuffer(pages, dtype=place.dtype, count=count, offset=before)
    return tensor.view(place.shape)


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
            logger.warning(
                "%s: expected a model that was trained, found the base's weights.", label
            )
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
    output: Path, weights: Mapping[str, Tensor], *, like: Folder, settings: Path, card: str = ""
) -> Path:
    """Write a model folder, a few tensors at a time, whole or not at all.

    Files, order and types of numbers are those of `like`; configurations, tokenizer and modules are
    copied from `settings`; `card` becomes README.md.
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
                contents = {
                    name: place for name, place in like.places.items() if place.file == path
                }
                write_tensors(target, contents, weights)
            else:
                shutil.copyfile(path, target)
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")
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
        rest = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
        at = start + header[place.key]["data_offsets"][0]
        while rest:  # a single call writes two gigabytes at most
            written = os.pwrite(stream.fileno(), rest, at)
            rest, at = rest[written:], at + written

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
