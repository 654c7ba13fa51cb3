"""Every reader of a stranger's file: valid files, the call, and the oracle that knows better."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import numpy as np
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from transformers import AutoModel, AutoTokenizer, BertModel

from codiemb_lib.app.notebooks import read_parameters
from codiemb_lib.core import load_preset, read_settings
from codiemb_lib.data import list_datasets, read_beir, read_file, to_json
from codiemb_lib.data.records import Record
from codiemb_lib.fuse.folders import open_folders
from codiemb_lib.fuse.merging import Recipe
from codiemb_lib.fuse.tensors import Folder, FusionError
from codiemb_lib.model import Encoder
from tests.attack import oracles
from tests.attack.mutations import mutate, mutate_header
from tests.attack.oracles import Refused, need, strict_json, text_of
from tests.conftest import tiny_encoder
from tests.made_up import ir_records, sts_records

ROOT, SCRATCH = Path(__file__).parents[2], TemporaryDirectory(prefix="attack-")
Mutation = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Reader:
    """A door for files: `read` and `oracle` take a folder, and `agree` their two results."""

    files: Callable[[], Mapping[str, bytes]]  # valid ones, by their places
    read: Callable[[Path], Any]
    oracle: Callable[[Path], Any]
    share: int  # of all inputs, in parts of a hundred
    agree: Callable[[Any, Any], bool] = lambda held, said: held == said
    mutation: Mutation = mutate
    kept: tuple[str, ...] = ()  # files that stay as they are


def folder_of(path: Path) -> dict[str, bytes]:
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def plain(records: list[Record]) -> oracles.Rows:
    fields = [name for name in Record.__slots__ if name != "dataset"]
    return [tuple(getattr(record, name) for name in fields) for record in records]


# --- Records --------------------------------------------------------------------------------------


def unified_files() -> dict[str, bytes]:
    scored = {"task": "ir", "query": "q é", "positives": ["a", "b"], "negatives": ["c"]}
    scored |= {"positive_scores": [1, 0.5], "negative_scores": [-2.5], "id": "7", "same_id": "d"}
    rows = [json.dumps(scored, ensure_ascii=False)]
    rows += [to_json(r) for r in (*ir_records(3), *sts_records(3))]
    return {"x.jsonl": "\n".join([*rows, ""]).encode()}


def authors_files() -> dict[str, bytes]:
    one = {
        "task_type": "ir",
        "query": ["t", "i: ", "q"],
        "positives": [["t", "", "p"], ["t", "", "r"]],
    }
    one |= {"negatives": [["t", "", "n"]], "positive_scores": [1.0, 2], "negative_scores": [0]}
    two = {"task_type": "sts", "query": "left", "pos": ["right"], "pos_scores": [0.5], "neg": []}
    three = {"query": "flag", "pos": ["embedding"], "neg": ["other", "embedding"], "prompt": "x"}
    rows = (json.dumps(row) for row in (one, two, three))
    return {"x.json": ("[\n" + ",\n".join(rows) + "\n]").encode()}


PAIRS = b'left,right,score\na cat,a dog,2.5\n"a, b","say ""so""",5\nold,new,0\nred bus,bus,1e0\n'
BARE = b'a cat\ta dog\t2.5\na bus\tred bus\t4\nold\tnew\t0\nthe "red" car\ta car\t3.75\n'
ANSWERS = b"id;question;answer;wrong\n1;what is a cat;an animal;a car\n2;where?;here;\n"
ANSWERS += b"2;where?;there;no\n"


def pairs(folder: Path) -> oracles.Rows:
    columns = ["left", "right", "score"]
    return plain(read_file(folder / "x.csv", columns=columns, scale=(0, 5)))


def bare(folder: Path) -> oracles.Rows:
    return plain(read_file(folder / "x.tsv", columns=[0, 1, 2], scale=(0, 5)))


def answers(folder: Path) -> oracles.Rows:
    return plain(
        read_file(folder / "x.csv", columns=["question", "answer", "wrong"], delimiter=";")
    )


def one_of(held: Any, said: list[Any]) -> bool:
    return held in said


def beir_files() -> dict[str, bytes]:
    corpus = [{"_id": f"d{i}", "title": "t" * (i % 2), "text": f"text {i}"} for i in range(5)]
    queries = [{"_id": f"{i}", "text": f"query {i}"} for i in range(3)]
    judged = [
        "query-id\tcorpus-id\tscore",
        "0\td0\t1",
        "0\td1\t2",
        "1\td2\t1",
        "2\td3\t0",
        "2\td4\t1",
    ]
    lines = {"corpus.jsonl": map(json.dumps, corpus), "queries.jsonl": map(json.dumps, queries)}
    lines["qrels/test.tsv"] = judged
    return {name: ("\n".join(of) + "\n").encode() for name, of in lines.items()}


# --- Settings -------------------------------------------------------------------------------------


def preset_files() -> dict[str, bytes]:
    return {"smoke.yaml": (ROOT / "notebooks" / "presets" / "smoke.yaml").read_bytes()}


RECIPE = b"""base: models/base
revision: "1"
ingredients:
  one: models/one
  two: models/two
method: ties
density: 0.5
weights: [1, 0.25]
scale: 0.9
keep: {"*embed*": base, "*orm*": two}
"""
REGISTRY = b"""pairs:
  task: sts
  licence: CC0
  provenance: made up
  files:
    test: {path: a/b.csv, sha256: %b, url: "http://x/y"}
  columns: [left, right, score]
  scale: [0, 5]
built:
  task: ir
  licence: MIT
  provenance: made up
  build: squad
  options: {most: 3}
  fractions: {train: 0.8, dev: 0.1, test: 0.1}
hub:
  task: ir
  licence: MIT
  provenance: made up
  hub: org/name
  splits: {train: train}
  columns: [q, a]
""" % (b"ab" * 32)


def preset_says(path: Path) -> Any:
    return load_preset(str(path / "smoke.yaml")).model_dump()


def recipe_says(path: Path) -> Any:
    return read_settings(path / "recipe.yaml", Recipe, FusionError).model_dump()


def registry_says(path: Path) -> Any:
    return {entry.name: entry.model_dump() for entry in list_datasets(path / "registry.yaml")}


def settings_agree(held: Any, node: yaml.Node) -> bool:
    if isinstance(held.get("ingredients"), dict):
        paths = next(value for key, value in node.value if key.value == "ingredients")
        if isinstance(paths, yaml.SequenceNode):
            held = held | {"ingredients": [*held["ingredients"]]}
    oracles.says(node, held)
    return True


# --- Models ---------------------------------------------------------------------------------------

KINDS = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}


def weight_files() -> dict[str, bytes]:
    tensors = {
        "a.weight": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones(2, 1, dtype=torch.int64),
    }
    tensors |= {"c.half": torch.ones(4, dtype=torch.bfloat16), "d.none": torch.zeros(0, 2)}
    return {"model.safetensors": save(tensors, {"format": "pt"})}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in Folder(folder).items()}


def safe_weights(folder: Path) -> dict[str, torch.Tensor]:
    """What the official reader reads."""
    try:
        with safe_open(folder / "model.safetensors", "pt") as file:
            names = [*file.keys()]
            need(all(file.get_slice(name).get_dtype() in KINDS for name in names), "kinds")
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise Refused(str(error)) from error


def same_bits(held: dict[str, torch.Tensor], said: dict[str, torch.Tensor]) -> bool:
    alike = (
        (t.dtype, t.shape, t.contiguous().view(-1).view(torch.uint8).tolist())
        for t in held.values()
    )
    others = (
        (t.dtype, t.shape, t.contiguous().view(-1).view(torch.uint8).tolist())
        for t in said.values()
    )
    return dict(zip(held, alike, strict=True)) == dict(zip(said, others, strict=True))


@cache
def base() -> Path:
    return tiny_encoder(prompts={"query": "find : "}).save(Path(SCRATCH.name) / "base")


def model_files() -> dict[str, bytes]:
    return folder_of(base())


TEXTS = ["find the old red car", "a new blue bus"]


def encoder(folder: Path) -> tuple:
    loaded = Encoder.load(folder)
    options = loaded.pooling, loaded.include_prompt, loaded.tokenizer.max_length, loaded.prompts
    return *options, loaded.default_prompt_name, loaded.encode(TEXTS)


def stated(file: Path) -> Any:
    said = strict_json(text_of(file)) if file.is_file() else {}
    need(isinstance(said, dict), "no object")
    return said


def plain_encoder(folder: Path) -> tuple:
    """What the files say of pooling, and what transformers and a mean in NumPy make of the rest."""
    for file in {*folder.rglob("*.json")} - {folder / "tokenizer.json"}:  # which is for Rust alone
        strict_json(text_of(file))
    modules = strict_json(text_of(folder / "modules.json"))
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    need(kinds[:2] == ["Transformer", "Pooling"] and {*kinds[2:]} <= {"Normalize"}, "modules")
    modes, further = (
        stated(folder / modules[1]["path"] / "config.json"),
        stated(folder / "config_sentence_transformers.json"),
    )
    names = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}
    chosen = [
        k.removeprefix("pooling_mode_")
        for k, v in modes.items()
        if k.startswith("pooling_mode_") and v is True
    ]
    need(len(chosen) == 1 and chosen[0] in names, "pooling")
    pooling = names[chosen[0]]
    need(further.get("similarity_fn_name") in (None, "", "cosine", "dot"), "similarity")
    length = stated(folder / "sentence_bert_config.json").get("max_seq_length")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    positions = model.config.max_position_embeddings
    length = min(length or tokenizer.model_max_length, positions)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens).last_hidden_state.numpy()
    mask = tokens["attention_mask"].numpy()
    rows = np.arange(len(TEXTS))
    if pooling == "mean":
        vectors = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    else:
        vectors = states[rows, mask.sum(1) - 1 if pooling == "last" else 0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    prompts = {name: text or "" for name, text in (further.get("prompts") or {}).items()}
    include = modes.get("include_prompt", True)
    return pooling, include, length, prompts, further.get("default_prompt_name"), vectors


def encoders_agree(held: tuple, said: tuple) -> bool:
    return held[:-1] == said[:-1] and np.allclose(held[-1], said[-1], atol=1e-5)


def adapter_files() -> dict[str, bytes]:
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["query", "value"], init_lora_weights=False
    )
    folder = Path(SCRATCH.name) / "lora"
    get_peft_model(BertModel.from_pretrained(base()), config).save_pretrained(folder)
    return {
        f"lora/{name}": data for name, data in folder_of(folder).items() if not name.endswith(".md")
    }


def adapted(folder: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, [model], _ = open_folders(base(), [folder / "lora"], folder)
    return dict(model)


def plain_adapted(folder: Path) -> dict[str, torch.Tensor]:
    """W + alpha / r B A, by the adapter's own numbers."""
    config = stated(folder / "lora" / "adapter_config.json")
    need(str(config.get("peft_type")).upper() == "LORA", "kind")
    need(type(config.get("r", 8)) is int and type(config.get("lora_alpha", 8)) in (int, float), "r")
    scale = config.get("lora_alpha", 8) / (
        config.get("r", 8) ** (0.5 if config.get("use_rslora") else 1)
    )
    out = load_file(base() / "model.safetensors")
    with safe_open(folder / "lora" / "adapter_model.safetensors", "pt") as file:
        parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in [name for name in parts if name.endswith("lora_A.weight")]:
        target = name.removeprefix("base_model.model.").replace(".lora_A", "")
        up = parts[name.replace("lora_A", "lora_B")]
        out[target] = out[target] + scale * (up @ parts[name])
    return out


def tensors_agree(held: dict[str, torch.Tensor], said: dict[str, torch.Tensor]) -> bool:
    return held.keys() == said.keys() and all(
        torch.allclose(held[n], said[n], atol=1e-5) for n in held
    )


# --- Notebooks ------------------------------------------------------------------------------------


def notebook_files() -> dict[str, bytes]:
    source = (
        'preset: str = "mini"  # a name\nsteps: int = 200\nrate: float = -1e-3\nshow: bool = True\n'
    )
    cells = [nbformat.v4.new_markdown_cell("words"), nbformat.v4.new_code_cell(source)]
    cells[1].metadata["tags"] = ["parameters"]
    text = nbformat.writes(nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell("1")]))
    return {"n.ipynb": text.encode()}


READERS = {
    "unified JSONL": Reader(
        unified_files, lambda f: plain(read_file(f / "x.jsonl")), oracles.unified, 18
    ),
    "authors' and FlagEmbedding's JSON": Reader(
        *(authors_files, lambda f: plain(read_file(f / "x.json", task="ir")), oracles.authors, 14)
    ),
    "rated pairs, CSV": Reader(
        *(lambda: {"x.csv": PAIRS}, pairs),
        lambda f: oracles.either(
            f / "x.csv", partial(oracles.rated, columns=["left", "right", "score"], low=0, high=5)
        ),
        *(6, one_of),
    ),
    "rated pairs, TSV": Reader(
        *(lambda: {"x.tsv": BARE}, bare),
        lambda f: oracles.either(
            f / "x.tsv", partial(oracles.rated, columns=[0, 1, 2], low=0, high=5)
        ),
        *(6, one_of),
    ),
    "answers, CSV": Reader(
        *(lambda: {"x.csv": ANSWERS}, answers),
        lambda f: oracles.either(
            f / "x.csv", partial(oracles.answered, columns=["question", "answer", "wrong"]), ";"
        ),
        *(6, one_of),
    ),
    "BEIR folders": Reader(
        *(beir_files, lambda f: {s: plain(r) for s, r in read_beir(f).items()}, oracles.beir, 8),
        lambda held, said: held.keys() == said.keys() and all(held[s] in said[s] for s in held),
    ),
    "presets": Reader(
        preset_files, preset_says, lambda f: oracles.nodes(f / "smoke.yaml"), 8, settings_agree
    ),
    "recipes": Reader(
        *(lambda: {"recipe.yaml": RECIPE}, recipe_says),
        *(lambda f: oracles.nodes(f / "recipe.yaml"), 8, settings_agree),
    ),
    "registry": Reader(
        *(lambda: {"registry.yaml": REGISTRY}, registry_says),
        *(lambda f: oracles.nodes(f / "registry.yaml"), 6, settings_agree),
    ),
    "safetensors": Reader(weight_files, weights, safe_weights, 8, same_bits, mutate_header),
    "notebooks": Reader(
        *(notebook_files, lambda f: read_parameters(f / "n.ipynb")),
        *(lambda f: oracles.parameters(f / "n.ipynb"), 8),
    ),
    "model folders": Reader(
        model_files,
        encoder,
        plain_encoder,
        3,
        encoders_agree,
        kept=("model.safetensors", "README.md"),
    ),
    "adapters": Reader(
        *(adapter_files, adapted, plain_adapted, 1, tensors_agree),
        kept=("lora/adapter_model.safetensors",),
    ),
}
