"""What a sentence-transformers folder states of an encoder, read and written."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from codiemb_lib.core import CodiembError, explain, read_json, unknown, write_json

POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}
MODULES = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}  # and folders
PROMPTS_FILE = "config_sentence_transformers.json"


class EncoderError(CodiembError, ValueError):
    """An encoder is unknown, damaged, or says something that cannot be run."""


def refuse(is_so: object, message: str) -> None:
    """Raise an EncoderError with this message if something is so."""
    if is_so:
        raise EncoderError(message)


def parts(folder: Path) -> list[tuple[str, Path]]:
    """The kind and the folder of each part of a model, in order, the transformer being the first.

    modules.json names them. Without it the folder is the transformer's, perhaps with pooling.
    """
    ours = [{"type": kind, "path": path} for kind, path in MODULES.items()]
    modules = stated(folder / "modules.json", list) or ours
    try:
        return [(module["type"].rpartition(".")[2], folder / module["path"]) for module in modules]
    except (AttributeError, KeyError, TypeError) as error:
        raise EncoderError(
            f"{folder}/modules.json: expected paths, found {modules!r:.99}."
        ) from error


class _Statements(BaseModel):
    """The types of what the files of a folder state of an encoder."""

    model_config = ConfigDict(strict=True)

    modules: list[str]
    pooling: list[str]
    include_prompt: bool
    max_length: int | float | None
    do_lower_case: bool
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity: str
    truncate_dim: int | None


def statements(folder: Path) -> dict[str, Any]:
    """What the files of a folder say of a model, whichever library wrote them, and wherever.

    Of the releases of sentence-transformers, 0 to 3 keep the transformer in `0_Transformer`, and 6
    names the mode of pooling itself and leaves the greatest length to the tokenizer.
    """
    modules = parts(folder)
    folders, transformer = dict(modules), modules[0][1]
    modes = stated(folders["Pooling"] / "config.json") if "Pooling" in folders else {}
    pooling = modes.get("pooling_mode") or [
        key for key, on in modes.items() if key.startswith("pooling_mode_") and on is True
    ]
    pooling = pooling if isinstance(pooling, list) else [pooling]
    short = {key: name for name, key in POOLING_KEYS.items()} | {"lasttoken": "last"}
    files = transformer.glob("sentence_*_config.json")  # bert, but once the architecture's name
    length = next(map(stated, sorted(files)), {})
    tokenizer = stated(transformer / "tokenizer_config.json")
    further = stated(folder / PROMPTS_FILE)
    prompts = further.get("prompts") or {}
    if isinstance(prompts, dict):
        prompts = {name: text or "" for name, text in prompts.items()}
    said = {
        "modules": [kind for kind, _ in modules],
        "pooling": [short.get(str(m), m) for m in pooling],
        "include_prompt": modes.get("include_prompt", bool(modes)),
        "max_length": length.get("max_seq_length") or tokenizer.get("model_max_length"),
        "do_lower_case": length.get("do_lower_case", False),
        "prompts": prompts,
        "default_prompt_name": further.get("default_prompt_name"),
        "similarity": further.get("similarity_fn_name") or "cosine",
        "truncate_dim": further.get("truncate_dim"),
    }
    try:
        return _Statements(**said).model_dump()
    except ValidationError as error:
        raise EncoderError(f"{folder}: the model's JSON files: {explain(error)}") from error


def read_saved(folder: Path) -> dict[str, Any]:
    """Options of an `Encoder` as a folder's files state them; `pooling` is a list of all.

    What no `Encoder` does is refused by an EncoderError: other modules, other similarities.
    """
    said = statements(folder)
    strange = sorted({*said["modules"]} - set(MODULES))
    refuse(
        strange,
        f"{folder / 'modules.json'}: expected the modules {', '.join(MODULES)}, found {strange} "
        "besides, which would be left out. Choose a model without them.",
    )
    alike = {"cosine", "dot"} if "Normalize" in said["modules"] else {"cosine"}
    refuse(
        said["similarity"] not in alike,
        f"{folder / PROMPTS_FILE}: expected a model that compares texts by the cosine, found "
        f"`similarity_fn_name: {said['similarity']}`, whose scores are others. Choose another "
        "model, or write `cosine` there, in a copy, to train or to measure this one by it.",
    )
    default = said["default_prompt_name"]
    known = {"query", "document", *said["prompts"]}  # the first two are empty where nothing is said
    refuse(
        default is not None and default not in known,
        f"{folder / PROMPTS_FILE}: {unknown('default_prompt_name', str(default), known)}",
    )
    options = ("pooling", "include_prompt", "max_length", "prompts", "default_prompt_name")
    return {option: said[option] for option in options}


def write_saved(folder: Path, encoder) -> None:
    """Write what an encoder is beside its transformers model."""
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(MODULES.items())
    ]
    pooling = {"word_embedding_dimension": encoder.dimension}
    pooling |= {key: name == encoder.pooling for name, key in POOLING_KEYS.items()}
    # Leaving the prompt out means something for the mean alone; elsewhere readers of this file
    # would look for the CLS token behind the prompt.
    pooling["include_prompt"] = encoder.include_prompt or encoder.pooling != "mean"
    length = {"max_seq_length": encoder.tokenizer.max_length, "do_lower_case": False}
    further = {"prompts": encoder.prompts, "default_prompt_name": encoder.default_prompt_name}
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "sentence_bert_config.json", length)
    write_json(folder / PROMPTS_FILE, further | {"similarity_fn_name": "cosine"})


def stated(file: Path, kind: type = dict) -> Any:
    """What a JSON file says, an object or a list; an empty one where there is none."""
    found = read_json(file) if file.is_file() else kind()
    expected = "an object" if kind is dict else "a list"
    refuse(not isinstance(found, kind), f"{file}: expected {expected}, found {found!r:.99}.")
    return found
