"""What a sentence-transformers folder states of an encoder, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codiemb_lib.core import read_json, unknown, write_json
from codiemb_lib.model.errors import refuse

POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}
MODULES = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}  # and folders
POOLING_FILE = "1_Pooling/config.json"
LENGTH_FILE = "sentence_bert_config.json"
PROMPTS_FILE = "config_sentence_transformers.json"


def read_saved(folder: Path) -> dict[str, Any]:
    """Options of an `Encoder` as a folder's files state them; `pooling` is a list of all."""
    kinds = {module["type"].rpartition(".")[2] for module in stated(folder / "modules.json")}
    strange = sorted(kinds - set(MODULES))
    refuse(
        strange,
        f"{folder / 'modules.json'}: expected the modules {', '.join(MODULES)}, found {strange} "
        "besides, which would be left out. Choose a model without them.",
    )
    modes = stated(folder / POOLING_FILE)
    pooling = modes.get("pooling_mode") or [  # the newer layout names the mode itself
        key for key, on in modes.items() if key.startswith("pooling_mode_") and on is True
    ]
    short = {key: name for name, key in POOLING_KEYS.items()} | {"lasttoken": "last"}
    further = stated(folder / PROMPTS_FILE)
    prompts = {name: prompt or "" for name, prompt in (further.get("prompts") or {}).items()}
    default = further.get("default_prompt_name")
    known = {"query", "document", *prompts}  # the first two are empty where nothing is said
    refuse(
        default is not None and default not in known,
        f"{folder / PROMPTS_FILE}: {unknown('default_prompt_name', str(default), known)}",
    )
    return {
        "pooling": [short.get(m, m) for m in ([pooling] if isinstance(pooling, str) else pooling)],
        "include_prompt": modes.get("include_prompt", bool(modes)),
        "max_length": stated(folder / LENGTH_FILE).get("max_seq_length"),
        "prompts": prompts,
        "default_prompt_name": default,
    }


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
    write_json(folder / POOLING_FILE, pooling)
    write_json(folder / LENGTH_FILE, length)
    write_json(folder / PROMPTS_FILE, further | {"similarity_fn_name": "cosine"})


def stated(file: Path) -> Any:
    """What a JSON file says; {} where there is none."""
    return read_json(file) if file.is_file() else {}
