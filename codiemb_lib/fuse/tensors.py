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
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from codiemb_lib.core import (
    CodiembError,
    atomic_path,
    clear_scratch,
    read_json,
    sha256_file,
    sha256_folder,
)

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
_FLUSH = 1 << 25  # bytes after which the disk takes over, while others are worked out
_WORKERS = 4  # at most: each holds a tensor of every model, and few cores saturate the memory
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_TABLE = re.compile(r"(embed_tokens|word_embeddings|\bwte|\bshared)\.weight$")
_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")  # of several architectures
_COPIED_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".py"}

# What the settings of two checkpoints of one run may differ in: library versions, the state in
# which a tokenizer was saved, and the type of numbers in the file.
_VOLATILE_KEYS = {"__version__", "truncation", "padding"}
_VOLATILE_KEYS |= {"transformers_version", "dtype", "torch_dtype", "_name_or_path"}
# Of a tokenizer's configuration, which differs with the library that wrote it, what changes ids.
_TOKENIZER_KEYS = {"model_max_length", "do_lower_case", "strip_accents", "tokenize_chinese_chars"}
_TOKENIZER_KEYS |= {"add_bos_token", "add_eos_token", "add_prefix_space"}


class FusionError(CodiembError, ValueError):
    """Models, or what is asked of them, do not fit together."""


class Lazy(Mapping[str, Tensor]):
    """A model whose tensors are worked out when they are asked for, each time anew.

    Args:
        names: Of its tensors, in order.
        work_out: From a name to its tensor; several threads may ask at a time.
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

    A tensor's name has its subfolder in front, as in "2_Dense/linear.weight". `ties` names, by a
    head that its configuration ties to the embeddings, the table that it is.

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
        whole = {file.parent for file in self.files}
        pickles = [
            path
            for path in sorted(self.folder.rglob("*"))
            if path.suffix in _PICKLES
            and path.parent not in whole
            and (not whole or (path.parent / "config.json").is_file())  # else of another kind
        ]
        if pickles or not self.files:
            found = f"pickled weights ({pickles[0].name}), which run code" if pickles else "none"
            raise FusionError(
                f"{pickles[0].parent if pickles else folder}: expected weights in safetensors, "
                f"found {found}. Save the model again with sentence-transformers, which writes "
                "safetensors."
            )
        self.places: dict[str, Place] = {}
        for file in self.files:
            subfolder = file.parent.relative_to(self.folder).as_posix()
            for place in read_places(file):
                if place.key.endswith("position_ids") and _counts(read_tensor(place)):
                    continue  # older libraries stored it, newer ones count
                name = place.key if subfolder == "." else f"{subfolder}/{place.key}"
                if name in self.places:
                    raise FusionError(
                        f"{folder}: expected each tensor once, found {name} in "
                        f"{self.places[name].file.name} and in {file.name}. Remove the file that "
                        "is out of date."
                    )
                self.places[name] = place
        self.ties = self._ties()

    def __getitem__(self, name: str) -> Tensor:
        return read_tensor(self.places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def _ties(self) -> dict[str, str]:
        """Heads that should be the embedding table, and are; others are refused."""
        config = self.folder / "config.json"
        if not (config.is_file() and read_json(config).get("tie_word_embeddings")):
            return {}
        ties = {}
        for head, place in self.places.items():
            if not head.endswith(("lm_head.weight", ".decoder.weight")):
                continue
            for table, other in self.places.items():
                if not _TABLE.search(table) or other.shape != place.shape:
                    continue
                if not torch.equal(self[head], self[table]):
                    raise FusionError(
                        f"{self.folder}: expected {head} and {table} to be equal, since its "
                        "config.json has `tie_word_embeddings: true`, found that they differ. "
                        "Remove the one that was not trained, or write `false` there."
                    )
                ties[head] = table
        return ties


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


def _counts(positions: Tensor) -> bool:
    """Whether they are 0, 1, 2, ..."""
    return torch.equal(positions.flatten().long(), torch.arange(positions.numel()))


# Adapters


class Adapter(Folder):
    r"""A base with a LoRA adapter of peft added: W + scaling B A where layers are adapted.

    The scaling is alpha / r, or alpha / sqrt(r) for rank-stabilised adapters (Hu et al.,
    arXiv 2106.09685; Kalajdzievski, arXiv 2312.03732). The sum is in float32 or wider.

    Args:
        folder: With adapter_config.json and adapter_model.safetensors.
        base: The model that the adapter was trained on.

    Raises:
        FusionError: The adapter does something else, fits another base, or is pickled.
    """

    def __init__(self, folder: str | Path, base: Folder) -> None:
        self.folder, self.base = Path(folder), base
        self.files, self.places, self.ties = base.files, base.places, base.ties
        config = read_json(self.folder / "adapter_config.json")
        self._check_kind(config)
        file = self.folder / "adapter_model.safetensors"
        if not file.is_file():
            raise FusionError(
                f"{folder}: expected adapter_model.safetensors, found none. Save the adapter again "
                "with peft, which writes safetensors."
            )
        self._added: dict[str, tuple[Place, Place, float]] = {}  # A (r, in), B (out, r), scaling
        self._replaced: dict[str, Place] = {}
        by_key = {place.key.removeprefix("base_model.model."): place for place in read_places(file)}
        for key, place in by_key.items():
            module, is_down, _ = key.partition(".lora_A.")
            if is_down:
                up = by_key.get(other := key.replace(".lora_A.", ".lora_B."))
                if up is None:
                    raise FusionError(f"{folder}: expected {other} beside {key}, found none.")
                name = self._in_base(f"{module}.weight", (up.shape[0], place.shape[1]))
                self._added[name] = place, up, _scaling(config, module, place.shape[0])
            elif ".lora_" not in key:  # of modules_to_save
                self._replaced[self._in_base(key, place.shape)] = place
            elif ".lora_B." not in key:
                raise FusionError(f"{folder}: expected LoRA of linear layers, found {key}.")

    def __getitem__(self, name: str) -> Tensor:
        if name in self._replaced:
            return read_tensor(self._replaced[name])
        weight = self.base[name]
        if name in self._added:
            *factors, scaling = self._added[name]
            dtype = torch.promote_types(weight.dtype, torch.float32)
            down, up = (read_tensor(place).to(dtype) for place in factors)
            weight = torch.addmm(weight.to(dtype), up, down, alpha=scaling)
        return weight

    def _in_base(self, key: str, shape: tuple[int, ...]) -> str:
        """The base's name of a parameter: either may have a prefix, such as `model.`."""
        found = key
        while found not in self.base and "." in found:
            found = found.partition(".")[2]
        names = [found] if found in self.base else [n for n in self.base if n.endswith(f".{key}")]
        if len(names) != 1 or self.base.places[names[0]].shape != shape:
            raise FusionError(
                f"{self.folder}: expected an adapter of {self.base.folder}, found one of {key} "
                f"with shape {shape}, which that has not. Name the base of its training."
            )
        return names[0]

    def _check_kind(self, config: Mapping[str, Any]) -> None:
        if config.get("peft_type") != "LORA":
            raise FusionError(
                f"{self.folder}: expected an adapter of type LORA, found "
                f"{config.get('peft_type')}. Merge it into its base with peft, and fuse the result."
            )
        strange = [key for key in _STRANGE_ADAPTERS if config.get(key)]
        strange += ["bias"] if config.get("bias", "none") != "none" else []
        if config.get("init_lora_weights") not in _PLAIN_STARTS:  # these change the base as well
            strange.append("init_lora_weights")
        if strange:
            raise FusionError(
                f"{self.folder}: expected a plain LoRA adapter, found "
                f"{', '.join(f'{key}: {config[key]}' for key in strange)}. Merge it into its base "
                "with peft's `merge_and_unload`, and fuse the result."
            )


_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_STRANGE_ADAPTERS = (
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "megatron_config",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
)


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What B A is multiplied by in one module; the rank is that of its own matrices."""
    patterns = config.get("alpha_pattern") or {}
    own = [a for key, a in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
    alpha = own[0] if own else config["lora_alpha"]
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def open_models(
    base: Mapping[str, Tensor] | str | Path, models: Sequence[Mapping[str, Tensor] | str | Path]
) -> tuple[Mapping[str, Tensor], list[Mapping[str, Tensor]]]:
    """Folders opened as mappings, adapters on top of the base; mappings as they are.

    A packaged encoder may be named like a folder. A base that was saved with a head, so that its
    names have a prefix (`model.`, `roberta.`), is seen without either where models that were saved
    alone have neither; and without its last layers where the models were trained without these.

    Raises:
        FusionError: There is no model, or as for :class:`Folder` and :class:`Adapter`.
        FileNotFoundError: A folder is missing.
        EncoderError: A packaged encoder is not installed, or damaged.
        TypeError: A single model stands where a list should.
    """
    if isinstance(models, str | Path | Mapping):
        raise TypeError("checkpoints: expected a list of models, found a single one.")
    if not models:
        raise FusionError("checkpoints: expected one model or more, found none.")

    def opened(model: Mapping[str, Tensor] | str | Path) -> Mapping[str, Tensor] | Path:
        if isinstance(model, Mapping):
            return model
        if not Path(model).exists():
            from codiemb_lib.model import PACKAGED, packaged_folder  # takes seconds

            if model in PACKAGED:
                return Folder(packaged_folder(model))
        is_adapter = (Path(model) / "adapter_config.json").is_file()
        return Path(model) if is_adapter else Folder(model)

    base, *models = map(opened, (base, *models))
    if not isinstance(base, Mapping):
        raise FusionError(f"{base}: expected a whole model as the base, found an adapter.")
    whole = [model for model in models if isinstance(model, Mapping)]
    if whole and isinstance(base, Folder):
        if _layers(whole[0]) < _layers(base):
            base.places = {n: p for n, p in base.places.items() if _layer(n) < _layers(whole[0])}
        for prefix in {name.partition(".")[0] + "." for name in base}:
            inside = {
                n.removeprefix(prefix): p for n, p in base.places.items() if n.startswith(prefix)
            }
            if inside.keys() == {*whole[0]}:
                base.places = inside
    if len(whole) < len(models) and not isinstance(base, Folder):
        raise FusionError("base: expected a folder, for adapters are folders, found a mapping.")
    return base, [m if isinstance(m, Mapping) else Adapter(m, base) for m in models]


def _layers(model: Mapping[str, Tensor]) -> float:
    """How many layers a model's configuration states; infinitely many where it states none."""
    config = model.folder / "config.json" if isinstance(model, Folder) else None
    stated = read_json(config) if config and config.is_file() else {}
    return next((stated[key] for key in _LAYERS if key in stated), math.inf)


def _layer(name: str) -> int:
    """Number of the layer that a tensor lies in; -1 outside."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else -1


# Checking


def check_alike(base: Mapping[str, Tensor], models: Sequence[Mapping[str, Tensor]]) -> None:
    """Refuse models that were not trained from the base, as far as one sees.

    Raises:
        FusionError: Names, shapes, kinds of numbers, or integers differ.
    """
    expected = _described(base)
    for label, model in zip(labels(base, models)[1:], models, strict=True):
        found = _described(model)
        problems = [
            f"{name} ({found.get(name, 'missing')} beside {expected.get(name, 'missing')})"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        if problems:
            shown = ", ".join(problems[:8]) + (", ..." if len(problems) > 8 else "")
            raise FusionError(
                f"{label}: expected the names, shapes and kinds of the base's tensors, found "
                f"{len(problems)} that differ: {shown}. Fuse checkpoints of this very base."
            )
        for name, description in expected.items():
            if description.startswith("integer") and not torch.equal(model[name], base[name]):
                raise FusionError(
                    f"{label}: expected the integers of the base, found others in {name}. Integer "
                    "tensors cannot be merged; these models do not have one origin."
                )


def check_origin(base: Path, folders: Sequence[Path]) -> None:
    """Refuse runs of this project whose manifest says that they started from another model.

    Raises:
        FusionError: The hash in a manifest is not that of the base.
    """
    manifests = [folder.resolve().parent / "manifest.json" for folder in folders]
    started = {
        file: found
        for file in manifests
        if file.is_file() and (found := read_json(file).get("settings", {}).get("model_hash"))
    }
    if not started:
        return
    whole = base / "model.safetensors"  # whose hash stands for a packaged model
    known = {sha256_folder(base), *([sha256_file(whole)] if whole.is_file() else [])}
    for file, found in started.items():
        if found not in known:
            raise FusionError(
                f"{file}: expected a run that started from {base}, found one from another model "
                f"(sha256 {found[:12]}). Name the base of that run, or leave the run out."
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
    """The model whose files of weights the result has: the first that is no adapter."""
    return next((model for model in models if not isinstance(model, Adapter)), base)


def settings_folder(
    base: Folder, models: Sequence[Folder], source: str | int | None = None
) -> Path:
    """The folder whose tokenizer, pooling, prompts and configurations the result takes.

    Args:
        base: The base.
        models: The models.
        source: "base", or the number of a model; None: that of the first that is no adapter (else
            the base), if all such agree.

    Raises:
        FusionError: They do not agree, there is no such model, or it has other layers than the
            result.
    """
    if source is None:
        check_same_settings([m.folder for m in models if not isinstance(m, Adapter)])
        return layout(base, models).folder
    chosen = base if source == "base" else pick(models, source, "settings_from")
    chosen = base if isinstance(chosen, Adapter) else chosen
    weights = layout(base, models)
    if _layers(weights) < _layers(chosen) < math.inf:
        raise FusionError(
            f"settings_from: expected a model with the {_layers(weights)} layers of "
            f"{weights.folder}, found one with {_layers(chosen)}, {chosen.folder}. Name a "
            "checkpoint."
        )
    return chosen.folder


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
        "config.json",
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "*.model",
        "*.py",
        "*/config.json",
    )
    settings = [
        {
            path.relative_to(folder).as_posix(): path
            for pattern in patterns
            for path in folder.glob(pattern)
        }
        for folder in folders
    ]
    for folder, found in zip(folders[1:], settings[1:], strict=True):
        for file in sorted(settings[0].keys() | found.keys()):
            files = settings[0].get(file), found.get(file)
            if None in files or not _say_the_same(*files):
                raise FusionError(
                    f"{folder}: expected the {file} of {folders[0]}, found another or none. Models "
                    "that differ in modules, pooling, prompts or tokenizer do not encode alike: "
                    "name the one whose settings the result takes with `settings_from`."
                )


def _say_the_same(one: Path, other: Path) -> bool:
    """Whether two files of settings agree, but for what one and the same model may differ in."""
    if one.read_bytes() == other.read_bytes():  # a tokenizer's JSON takes long to parse
        return True
    if one.suffix != ".json":
        return False
    first, second = read_json(one), read_json(other)
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return first == second
    keys = (first.keys() | second.keys()) - _VOLATILE_KEYS
    if one.name == "tokenizer_config.json":
        keys = first.keys() & second.keys() & _TOKENIZER_KEYS
    return _only(first, keys) == _only(second, keys)


def _only(content: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: content[key] for key in keys if key in content}


# Writing


def write_model(
    output: str | Path,
    weights: Mapping[str, Tensor],
    *,
    like: Folder,
    settings: Path,
    card: Callable[[], str] | None = None,
) -> Path:
    """Write a model folder, a few tensors at a time, whole or not at all.

    Args:
        output: The folder, absent or empty.
        weights: By the names of `like`.
        like: The model whose files, order and types of numbers are kept.
        settings: The folder whose configurations, tokenizer and modules are copied.
        card: Gives the content of README.md, when all else is written.

    Raises:
        FileExistsError: The output is not empty.
        UnwritableError: The output cannot be written.
    """
    check_empty(output)
    clear_scratch(output)
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
        if card:
            (temporary / "README.md").write_text(card(), encoding="utf-8")
    return Path(output)


def write_tensors(file: Path, contents: Mapping[str, Place], weights: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, a few tensors at a time, each once.

    Args:
        file: Where to.
        contents: By the tensor's name among the weights, its key, type and shape in the file.
        weights: The tensors; several are asked for at a time, from as many threads.
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
    """A merged tensor in the type of numbers that its model is stored in.

    Raises:
        FusionError: A number is too large for the type.
    """
    stored = tensor.to(dtype)
    if stored.dtype != tensor.dtype and stored.is_floating_point() and not stored.isfinite().all():
        raise FusionError(
            f"{name}: expected numbers that {dtype} holds, found up to {tensor.abs().max():.4g}. "
            "Merge with a smaller scale or smaller weights, or store the checkpoints as bfloat16."
        )
    return stored


@contextmanager
def _single_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for whole tensors, on each of which torch works alone.

    While one writes the others compute, and one more than cores are at it; split among all cores, a
    tensor would keep them waiting.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            min(threads + 1, _WORKERS), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # the number is this thread's own and the process's
