"""Model folders that become one: opened beside their base, adapters merged in by peft, checked."""

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from codiemb_lib.core import layer_of, read_json, sha256_file, sha256_folder
from codiemb_lib.fuse.tensors import COPIED_SUFFIXES, Folder, FusionError, wide
from codiemb_lib.model import MODULES, parts, stated, statements

_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")  # of several architectures
# What a library writes and another leaves out, though weights and texts mean the same with it.
_VOLATILE = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures"}
_VOLATILE |= {"use_cache", "output_attentions"}
_PLAIN = {"gradient_checkpointing": False, "position_embedding_type": "absolute"}
_PLAIN |= dict.fromkeys(("module_input_name", "module_output_name"), "sentence_embedding")
_PLAIN |= {"use_residual": False}


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
    for model in (origin, *opened.values()):
        _share_names(model, like)
    return origin, [opened[folder] for folder in folders], like


def _share_names(model: Folder, like: Folder) -> None:
    """Give a model the names of another where a table of embeddings is stored twice, as the head.

    Libraries and their versions store both names, or either.
    """
    for name in model.keys() ^ like.keys():
        by, also = (model, like) if name in model else (like, model)
        twins = (n for n in by if n in also and -1 in (layer_of(n), layer_of(name)))
        if twin := next((n for n in twins if torch.equal(by[n], by[name])), None):
            if name in model:
                del model.places[name]
            else:
                model.places[name] = model.places[twin]


def tied(models: Sequence[Mapping[str, Tensor]]) -> dict[str, str]:
    """By the name of a head that in every model equals a table of embeddings: the table's name."""
    found: dict[str, str] = {}
    for table in (name for name in models[0] if layer_of(name) == -1):
        if table not in found:
            same = (n for n in models[0] if all(torch.equal(m[n], m[table]) for m in models))
            found |= dict.fromkeys((name for name in same if name != table), table)
    return found


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _check_patterns(folder: Path) -> None:
    """Refuse regular expressions of an adapter that are none, or whose search may never end."""
    config = read_json(folder / "adapter_config.json")
    found = [config.get("target_modules"), config.get("layers_pattern")]
    found += [*(config.get("rank_pattern") or ()), *(config.get("alpha_pattern") or ())]
    for pattern in (pattern for pattern in found if isinstance(pattern, str)):
        try:
            re.compile(pattern)
            sound = len(re.findall(r"[*+{]", pattern)) <= 4 and not re.search(r"\)[*+{]", pattern)
        except re.error:
            sound = False
        if not sound:
            raise FusionError(
                f"{folder / 'adapter_config.json'}: expected patterns of names with at most four "
                f"of *, + and {{}}, none of them behind a group, found {pattern!r:.120}."
            )


def _merge_adapter(folder: Path, base: Folder, scratch: Path) -> Folder:
    """The base with an adapter added by peft, in float32 or wider, written to `scratch`."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise FusionError(f"{folder}: expected peft. Run `pip install peft`.") from error
    from transformers import AutoModel

    _check_patterns(folder)
    try:
        backbone = AutoModel.from_pretrained(base.transformer, dtype="auto", use_safetensors=True)
        backbone.to(wide(backbone.dtype))
        head = backbone.base_model_prefix + "."  # before names in a model with a head
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # peft would go on
            adapted = PeftModel.from_pretrained(
                backbone, folder, key_mapping={f"^{re.escape(head)}": ""}
            )
        touched = [f"{module}.weight" for module in adapted.targeted_module_names]
        tensors = adapted.merge_and_unload().state_dict()
    except Exception as error:  # of the library, or of Rust below it
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
    model.folder = folder
    return model


def _layers(folder: Path) -> float:
    """How many layers a model's configuration states; infinitely many where it states none."""
    config = stated(parts(folder)[0][1] / "config.json")
    return next((config[key] for key in _LAYERS if key in config), math.inf)


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
        first = like.folder  # were their weights equal, would all encode a text as this one does?
        for folder in (path for path in folders if path != first and not _is_adapter(path)):
            expected, found = _stated(first), _stated(folder)
            if expected.pop("files") != found.pop("files"):  # they may mean the same; takes seconds
                expected, found = expected | _read(first), found | _read(folder)
            if different := [name for name in expected if expected[name] != found[name]]:
                raise FusionError(
                    f"{folder}: expected the {' and '.join(different)} of {first}, found another "
                    "or none. With `settings_from` name the one whose settings the result takes."
                )
        return like.folder
    chosen = base if _is_adapter(source) else source
    if _layers(like.folder) < _layers(chosen) < math.inf:
        raise FusionError(
            f"settings_from: expected a model with the {_layers(like.folder)} layers of "
            f"{like.folder}, found one with {_layers(chosen)}, {chosen}."
        )
    return chosen


def _stated(folder: Path) -> dict[str, Any]:
    """What a model's files state of the encoding of a text, and those that transformers reads."""
    said, modules = statements(folder), parts(folder)
    prompts = said["prompts"]
    said["default_prompt_name"] = prompts.get(said["default_prompt_name"], "")
    said["prompts"] = {name: prompt for name, prompt in prompts.items() if prompt}
    said["modules"] = [
        (kind, {} if kind in MODULES else _PLAIN | stated(part / "config.json"))
        for kind, part in modules
    ]
    paths = [path for path in modules[0][1].glob("*") if path.suffix in COPIED_SUFFIXES]
    said["files"] = {path.name: path.read_bytes() for path in paths}
    return said | {"code": [said["files"][path.name] for path in paths if path.suffix == ".py"]}


def _read(folder: Path) -> dict[str, Any]:
    """The configuration, with what it leaves out if transformers knows the architecture, and how
    the tokenizer makes ids of a text: not how it decodes, cuts or pads.
    """
    from transformers import CONFIG_MAPPING, AutoTokenizer

    transformer = parts(folder)[0][1]
    config = stated(transformer / "config.json")
    try:
        if (kind := config.get("model_type")) in CONFIG_MAPPING:
            config = CONFIG_MAPPING[kind].from_dict(config).to_dict()
        tokenizer = AutoTokenizer.from_pretrained(transformer, trust_remote_code=False)
        state = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # of the library, or of Rust below it
        raise FusionError(
            f"{folder}: expected settings that transformers reads, to compare them, found {error}. "
            "With `settings_from` name the one whose settings the result takes."
        ) from error
    steps = [state[step] for step in ("normalizer", "pre_tokenizer", "model", "added_tokens")]
    config = {key: value for key, value in (_PLAIN | config).items() if key not in _VOLATILE}
    return {"configuration": config, "tokenizer": [*steps, tokenizer("a b")["input_ids"]]}
