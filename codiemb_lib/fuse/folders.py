"""Model folders that become one: opened beside their base, adapters merged in by peft, checked."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors.torch import save_file

from codiemb_lib.core import layer_of, read_json, sha256_file, sha256_folder
from codiemb_lib.fuse.tensors import Folder, FusionError, wide

_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")  # of several architectures
# Files by which two models of equal weights would encode a text differently.
_SETTINGS = ["config.json", "modules.json", "config_sentence_transformers.json"]
_SETTINGS += ["sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
_SETTINGS += ["vocab.json", "merges.txt", "*.model", "*.py", "*/config.json"]
# What the settings of two checkpoints of one run may differ in: library versions, the state in
# which a tokenizer was saved, and the type of numbers in the file.
_VOLATILE_KEYS = {"__version__", "truncation", "padding"}
_VOLATILE_KEYS |= {"transformers_version", "dtype", "torch_dtype", "_name_or_path"}
# Of a tokenizer's configuration, which differs with the library that wrote it, what changes ids.
_TOKENIZER_KEYS = {"model_max_length", "do_lower_case", "strip_accents", "tokenize_chinese_chars"}
_TOKENIZER_KEYS |= {"add_bos_token", "add_eos_token", "add_prefix_space"}


def open_folders(
    base: Path, folders: Sequence[Path], scratch: Path
) -> tuple[Folder, list[Folder], Folder]:
    """The base, the models, and the one whose files of weights the result has.

    That is the first model which is no adapter, or else the base. An adapter is merged into a copy
    of the base, in `scratch`. A base that was saved with a head, under a prefix of names (`model.`,
    `roberta.`), is seen without either where the models are; and without layers that these lack.
    """
    if _is_adapter(base):
        raise FusionError(f"{base}: expected a whole model as the base, found an adapter.")
    origin = Folder(base)
    opened = {folder: Folder(folder) for folder in folders if not _is_adapter(folder)}
    like = next(iter(opened.values()), origin)
    if (layers := _layers(like.folder)) < _layers(base):
        origin.places = {n: p for n, p in origin.places.items() if (layer_of(n) or -1) < layers}
    for prefix in {name.partition(".")[0] + "." for name in origin}:
        inside = [name for name in origin if name.startswith(prefix)]
        if {name.removeprefix(prefix) for name in inside} == {*like}:
            origin.places = {name.removeprefix(prefix): origin.places[name] for name in inside}
    for number, folder in enumerate(folders):
        if folder not in opened:
            opened[folder] = _merge_adapter(folder, origin, scratch / f"adapter-{number}")
    return origin, [opened[folder] for folder in folders], like


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _merge_adapter(folder: Path, base: Folder, scratch: Path) -> Folder:
    """The base with an adapter added by peft, in float32 or wider, written to `scratch`."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise FusionError(f"{folder}: expected peft. Run `pip install peft`.") from error
    from transformers import AutoModel

    try:
        backbone = AutoModel.from_pretrained(base.folder, dtype="auto", use_safetensors=True)
        backbone.to(wide(backbone.dtype))
        head = backbone.base_model_prefix + "."  # before names in a model with a head
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # peft would go on
            adapted = PeftModel.from_pretrained(
                backbone, folder, key_mapping={f"^{re.escape(head)}": ""}
            )
        touched = [f"{module}.weight" for module in adapted.targeted_module_names]
        tensors = adapted.merge_and_unload().state_dict()
    except (LookupError, OSError, RuntimeError, TypeError, ValueError, Warning) as error:
        raise FusionError(
            f"{folder}: expected an adapter that peft merges into {base.folder}, found: "
            f"{' '.join(str(error).split())}"
        ) from error
    names = {name.removeprefix(head): name for name in base}
    if strangers := [name for name in touched if name not in names]:
        raise FusionError(
            f"{folder}: expected an adapter of {base.folder}, found one of another {strangers[0]}."
        )
    scratch.mkdir()
    merged = {name: tensors.get(bare, base[name]).contiguous() for bare, name in names.items()}
    save_file(merged, scratch / "model.safetensors")
    model = Folder(scratch)
    model.folder, model.ties = folder, base.ties
    return model


def _layers(folder: Path) -> float:
    """How many layers a model's configuration states; infinitely many where it states none."""
    config = folder / "config.json"
    stated = read_json(config) if config.is_file() else {}
    return next((stated[key] for key in _LAYERS if key in stated), math.inf)


def check_origin(base: Path, folders: Iterable[Path]) -> None:
    """Refuse runs of this project whose manifest says that they started from another model."""
    manifests = [folder.resolve().parent / "manifest.json" for folder in folders]
    started = {file: read_json(file).get("settings", {}) for file in manifests if file.is_file()}
    if not started:
        return
    whole = base / "model.safetensors"  # whose hash stands for a packaged model
    known = {None, sha256_folder(base), *([sha256_file(whole)] if whole.is_file() else [])}
    for file, settings in started.items():
        if (found := settings.get("model_hash")) not in known:
            raise FusionError(
                f"{file}: expected a run that started from {base}, found one from another model "
                f"(sha256 {found[:12]}). Name the base of that run, or leave the run out."
            )


def settings_folder(source: Path | None, base: Path, folders: Sequence[Path], like: Folder) -> Path:
    """The folder whose tokenizer, pooling, prompts and configurations the result takes.

    That is `source`, or the base for an adapter; without one that of `like`, if all models agree.
    """
    if source is None:
        _check_same_settings([folder for folder in folders if not _is_adapter(folder)])
        return like.folder
    chosen = base if _is_adapter(source) else source
    if _layers(like.folder) < _layers(chosen) < math.inf:
        raise FusionError(
            f"settings_from: expected a model with the {_layers(like.folder)} layers of "
            f"{like.folder}, found one with {_layers(chosen)}, {chosen}."
        )
    return chosen


def _check_same_settings(folders: Sequence[Path]) -> None:
    """Refuse models that would not encode a text alike, were their weights equal."""
    settings = [
        {p.relative_to(folder).as_posix(): p for form in _SETTINGS for p in folder.glob(form)}
        for folder in folders
    ]
    for folder, found in zip(folders[1:], settings[1:], strict=True):
        for file in sorted(settings[0].keys() | found.keys()):
            files = settings[0].get(file), found.get(file)
            if None in files or not _say_the_same(*files):
                raise FusionError(
                    f"{folder}: expected the {file} of {folders[0]}, found another or none. With "
                    "`settings_from` name the one whose settings the result takes."
                )


def _say_the_same(one: Path, other: Path) -> bool:
    """Whether two files of settings agree, but for what one and the same model may differ in."""
    if one.read_bytes() == other.read_bytes():  # a tokenizer's JSON takes long to parse
        return True
    if one.suffix != ".json" or one.name == "modules.json":
        return False
    first, second = read_json(one), read_json(other)
    keys = (first.keys() | second.keys()) - _VOLATILE_KEYS
    if one.name == "tokenizer_config.json":
        keys = first.keys() & second.keys() & _TOKENIZER_KEYS
    return all(key in first and key in second and first[key] == second[key] for key in keys)
