"""Weights on disk: model folders as mappings that read one tensor at a time, and their writer.

A folder is any model of transformers or sentence-transformers with weights in safetensors, whole or
in shards, or a LoRA adapter of peft on top of a base. Nothing here knows an architecture.

Memory: a tensor is a view of its file's pages, which leave the process with the tensor. So whoever
walks through models in step holds one tensor of each, never a model.
"""

from __future__ import annotations

import json
import math
import mmap
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from codiemb_lib.files import atomic_path, read_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_INDEX = ".safetensors.index.json"  # says which tensor lies in which shard
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_COPIED_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".py"}

# What the settings of two checkpoints of one run may differ in: library versions, and the state in
# which a tokenizer was saved.
_VOLATILE_KEYS = {"__version__", "truncation", "padding"}


class FusionError(ValueError):
    """Models, or what is asked of them, do not fit together."""


class Lazy(Mapping[str, Tensor]):
    """A model whose tensors are worked out when they are asked for, each time anew.

    Args:
        names: Of its tensors, in order.
        work_out: From a name to its tensor.
        like: The model whose folder it has in messages, and whose list of kept models.
    """

    def __init__(
        self,
        names: Iterable[str],
        work_out: Callable[[str], Tensor],
        *,
        like: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._names = dict.fromkeys(names)
        self._work_out = work_out
        self.folder: Path | None = getattr(like, "folder", None)
        self.kept: list[int] | None = getattr(like, "kept", None)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
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


# Reading


class Folder(Mapping[str, Tensor]):
    """The weights of a model folder; a tensor is read from disk each time it is asked for.

    A tensor's name has its subfolder in front, as in "2_Dense/linear.weight".

    Raises:
        FileNotFoundError: There is no such folder.
        FusionError: Its weights are pickled, damaged, missing or stand twice; or weights that
            its configuration ties together differ.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected a model folder, found none.")
        self.files = sorted(self.folder.rglob("*.safetensors"))
        if not self.files:
            pickles = [path for path in self.folder.rglob("*") if path.suffix in _PICKLES]
            found = f"pickled weights ({pickles[0].name}), which run code" if pickles else "none"
            raise FusionError(
                f"{folder}: expected weights in safetensors, found {found}. Save the model again "
                "with sentence-transformers, which writes safetensors."
            )
        self.places: dict[str, Place] = {}
        for file in self.files:
            subfolder = file.parent.relative_to(self.folder).as_posix()
            for place in read_places(file):
                if place.key.endswith("position_ids"):
                    continue  # 0, 1, 2, ...: older libraries stored it, newer ones count
                name = place.key if subfolder == "." else f"{subfolder}/{place.key}"
                if name in self.places:
                    raise FusionError(
                        f"{folder}: expected each tensor once, found {name} in "
                        f"{self.places[name].file.name} and in {file.name}. Remove the file that "
                        "is out of date."
                    )
                self.places[name] = place
        self._check_ties()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each tensor, without reading it."""
        return {name: place.shape for name, place in self.places.items()}

    def __getitem__(self, name: str) -> Tensor:
        return read_tensor(self.places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def _check_ties(self) -> None:
        """Refuse a head that should be the embedding table, and is not."""
        config = self.folder / "config.json"
        if not (config.is_file() and read_json(config).get("tie_word_embeddings")):
            return
        heads = [name for name in self if name.endswith(("lm_head.weight", ".decoder.weight"))]
        for head in heads:
            for table in self:
                is_table = table.endswith(("embed_tokens.weight", "word_embeddings.weight"))
                if is_table and not torch.equal(self[head], self[table]):
                    raise FusionError(
                        f"{self.folder}: expected {head} and {table} to be equal, since its "
                        "config.json has `tie_word_embeddings: true`, found that they differ. "
                        "Remove the one that was not trained, or write `false` there."
                    )


def read_places(file: Path) -> list[Place]:
    """The tensors of a safetensors file, in the order of their bytes, from its header.

    Layout: 8 bytes, the header's length; the header in JSON; the tensors' bytes.

    Raises:
        FusionError: It is no such file, or has a type of number that cannot be merged.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = file.stat().st_size
        try:
            if not 0 < length <= size - 8:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            places = []
            for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                begin, end = entry["data_offsets"]
                shape, dtype = tuple(entry["shape"]), DTYPES[entry["dtype"]]
                if end - begin != math.prod(shape) * dtype.itemsize or 8 + length + end > size:
                    raise ValueError(f"bytes {begin} to {end} for {key}")
                places.append(Place(file, key, 8 + length + begin, dtype, shape))
        except (ValueError, KeyError, TypeError) as error:
            raise FusionError(
                f"{file}: expected whole weights in safetensors, of the types {', '.join(DTYPES)}, "
                f"found {error}. Copy or save the model again."
            ) from error
    return places


def read_tensor(place: Place) -> Tensor:
    """One tensor as a view of its file's pages: what is not looked at is not read.

    Written to, it changes for this process alone.
    """
    count = math.prod(place.shape)
    if not count:
        return torch.empty(place.shape, dtype=place.dtype)
    before = place.start % mmap.ALLOCATIONGRANULARITY  # where a map may begin
    with place.file.open("rb") as stream:
        pages = mmap.mmap(
            stream.fileno(),
            before + count * place.dtype.itemsize,
            offset=place.start - before,
            access=mmap.ACCESS_COPY,
        )
    tensor = torch.frombuffer(pages, dtype=place.dtype, count=count, offset=before)
    return tensor.view(place.shape)


# Checking


def open_models(
    base: Mapping[str, Tensor] | str | Path, models: Sequence[Mapping[str, Tensor] | str | Path]
) -> tuple[Mapping[str, Tensor], list[Mapping[str, Tensor]]]:
    """Folders opened as mappings; mappings as they are.

    Raises:
        FusionError: There is no model, or as for :class:`Folder`.
        FileNotFoundError: A folder is missing.
        TypeError: A single model stands where a list should.
    """
    if isinstance(models, str | Path | Mapping):
        raise TypeError("checkpoints: expected a list of models, found a single one.")
    if not models:
        raise FusionError("checkpoints: expected one model or more, found none.")
    base, *models = (
        Folder(model) if isinstance(model, str | Path) else model for model in (base, *models)
    )
    return base, models


def check_alike(base: Mapping[str, Tensor], models: Sequence[Mapping[str, Tensor]]) -> None:
    """Refuse models that were not trained from the base, as far as one sees.

    Raises:
        FusionError: Names, shapes, kinds of numbers, or integers differ.
    """
    expected = _shapes(base)
    for label, model in zip(labels(base, models)[1:], models, strict=True):
        found = _shapes(model)
        problems = [
            f"{name} ({found.get(name, 'missing')} beside {expected.get(name, 'missing')})"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        if problems:
            shown = ", ".join(problems[:8]) + (", ..." if len(problems) > 8 else "")
            raise FusionError(
                f"{label}: expected the names and shapes of the base's tensors, found "
                f"{len(problems)} that differ: {shown}. Fuse checkpoints of this very base."
            )
        for name in base:
            origin, tensor = base[name], model[name]
            if tensor.is_floating_point() != origin.is_floating_point():
                raise FusionError(
                    f"{label}: expected {origin.dtype} as in the base, found {tensor.dtype} in "
                    f"{name}."
                )
            if not tensor.is_floating_point() and not torch.equal(tensor, origin):
                raise FusionError(
                    f"{label}: expected the integers of the base, found others in {name}. Integer "
                    "tensors cannot be merged; these models do not have one origin."
                )


def _shapes(model: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    if isinstance(model, Folder):
        return model.shapes
    return {name: tuple(tensor.shape) for name, tensor in model.items()}


def labels(base: Mapping[str, Tensor], models: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """What messages call the base and the models."""
    names = ["base", *(f"checkpoint {j}" for j in range(len(models)))]
    folders = [getattr(model, "folder", None) for model in (base, *models)]
    return [f"{n} ({folder})" if folder else n for n, folder in zip(names, folders, strict=True)]


def pick(models: Sequence[Mapping[str, Tensor]], number: Any, option: str) -> Mapping[str, Tensor]:
    """The model of a number that an option names.

    Raises:
        FusionError: There is none.
    """
    if not isinstance(number, int) or not 0 <= number < len(models):
        raise FusionError(
            f"{option}: expected 'base' or the number of a checkpoint, 0 to {len(models) - 1}, "
            f"found {number!r}."
        )
    return models[number]


def layout(base: Folder, models: Sequence[Folder]) -> Folder:
    """The folder whose files of weights the result has: the first model's."""
    return models[0]


def settings_folder(base: Folder, models: Sequence[Folder], source: str | int | None) -> Path:
    """The folder whose tokenizer, pooling, prompts and configurations the result takes.

    Args:
        base: The base.
        models: The models.
        source: "base", or the number of a model; None: that of the first, if all agree.

    Raises:
        FusionError: They do not agree, or there is no such model.
    """
    if source == "base":
        return base.folder
    if source is not None:
        return pick(models, source, "settings_from").folder
    check_same_settings([model.folder for model in models])
    return models[0].folder


def check_empty(output: str | Path) -> None:
    """Refuse an output that would replace something.

    Raises:
        FileExistsError: It is a file, or a folder with content.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"{output}: expected a new or an empty folder, found content. Remove it or choose "
            "another folder."
        )


def check_same_settings(folders: Sequence[Path]) -> None:
    """Refuse models that would not encode a text alike, were their weights equal.

    Raises:
        FusionError: Two differ in modules, pooling, prompts, lengths or tokenizer.
    """
    patterns = (
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "*/config.json",
    )
    settings = [
        {
            path.relative_to(folder).as_posix(): _stable(read_json(path))
            for pattern in patterns
            for path in folder.glob(pattern)
        }
        for folder in folders
    ]
    for folder, found in zip(folders, settings, strict=True):
        for file in sorted(settings[0].keys() | found.keys()):
            if settings[0].get(file) != found.get(file):
                raise FusionError(
                    f"{folder}: expected the {file} of {folders[0]}, found another or none. Models "
                    "that differ in modules, pooling, prompts or tokenizer do not encode alike: "
                    "name the one whose settings the result takes with `settings_from`."
                )


def _stable(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {key: value for key, value in settings.items() if key not in _VOLATILE_KEYS}


# Writing


def write_model(
    output: str | Path,
    weights: Mapping[str, Tensor],
    *,
    like: Folder,
    settings: Path,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write a model folder tensor by tensor, whole or not at all.

    Args:
        output: The folder, absent or empty.
        weights: By the names of `like`.
        like: The model whose files, order and types of numbers are kept.
        settings: The folder whose configurations, tokenizer and modules are copied.
        texts: Contents of further files by their names, such as a card.

    Raises:
        FileExistsError: The output is not empty.
        UnwritableError: The output cannot be written.
    """
    check_empty(output)
    with atomic_path(output) as temporary:
        temporary.mkdir()
        for path in sorted(settings.rglob("*")):  # a folder comes before what is in it
            target = temporary / path.relative_to(settings)
            if path.is_dir():  # kept even when empty: a module may have no file (Normalize)
                target.mkdir()
            elif path.suffix in _COPIED_SUFFIXES and not path.name.endswith(_INDEX):
                shutil.copyfile(path, target)
        for index in like.folder.rglob(f"*{_INDEX}"):
            shutil.copyfile(index, temporary / index.relative_to(like.folder))
        for file in like.files:
            target = temporary / file.relative_to(like.folder)
            target.parent.mkdir(exist_ok=True, parents=True)
            contents = {name: place for name, place in like.places.items() if place.file == file}
            write_tensors(target, contents, weights)
        for name, text in (texts or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
    return Path(output)


def write_tensors(file: Path, contents: Mapping[str, Place], weights: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, asking for one tensor after the other.

    Args:
        file: Where to.
        contents: By the tensor's name among the weights, its key, type and shape in the file.
        weights: The tensors.
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
    with file.open("wb", buffering=0) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, place in contents.items():
            tensor = weights[name].to(place.dtype).contiguous()
            rest = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
            while rest:
                rest = rest[stream.write(rest) :]  # a single call writes two gigabytes at most
