r"""Merging checkpoints of one pre-trained model by how far each of them moved.

The paper's equation is not public. This is the family that its public fragments allow: with
:math:`\delta_j = \theta_j - \theta_0` the deviation of checkpoint j from the initialisation,

.. math:: \theta = \theta_0 + \text{scale} \sum_j w_j \delta_j, \quad
          w_j = \lVert \delta_j \rVert^p \Big/ \sum_i \lVert \delta_i \rVert^p

with the norm over the whole model, a layer, a tensor or a single element. p = 0 is the uniform soup
(Wortsman et al., ICML 2022); p = 2 a tensor is FuseChat's VaRM; p = 2 over the model is MetaGPT's
coefficient.

Models are mappings from names to tensors, or folders of sentence-transformers models, whose tensors
are read one at a time. A method is one function in `METHODS`.
"""

from __future__ import annotations

import difflib
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from codiemb_lib.files import atomic_path, read_json

Model = Mapping[str, Tensor] | str | Path
PerTensor = Callable[[str, Tensor], Tensor]  # takes a tensor's name and its deltas (J, *shape)

GRANULARITIES = ("model", "layer", "tensor", "element")

# What the settings of two checkpoints of one run may differ in: library versions, and the state in
# which a tokenizer was saved.
_VOLATILE_KEYS = {"__version__", "truncation", "padding"}
_COPIED_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".py"}


@torch.no_grad()
def delta_guided_weights(
    base: Model,
    checkpoints: Sequence[Model],
    *,
    granularity: str = "tensor",
    power: float = 1.0,
) -> dict[str, Tensor]:
    """Merging weights of J checkpoints from the norms of their deltas, for each float tensor.

    Where all deltas are zero the weights are equal. With a negative power, the checkpoints that did
    not move at all share the whole weight, which is the limit of ever smaller deltas.

    Args:
        base: The initialisation that all checkpoints share.
        checkpoints: J models with its names and shapes.
        granularity: Over what a norm is taken: "model"; "layer", see :func:`layer_of`; "tensor";
            "element".
        power: The exponent p. 0 gives equal weights, 2 favours what moved far, -1 what stayed near.

    Returns:
        By name, weights that sum to one over their first dimension: (J,), or (J, *shape) by
        element.

    Raises:
        ValueError: Names or shapes differ, a value is not finite, integer tensors differ, no
            checkpoint is given, or the granularity or the power is unknown.
    """
    base, checkpoints = _open(base, checkpoints)
    weigh = _weigher(base, checkpoints, granularity, power)
    return {name: weigh(name, deltas) for name, deltas in _all_deltas(base, checkpoints)}


@torch.no_grad()
def delta_norms(base: Model, checkpoints: Sequence[Model]) -> dict[str, Tensor]:
    """Euclidean norm of each checkpoint's deviation from the base, (J,), for each float tensor.

    Raises:
        ValueError: As for :func:`delta_guided_weights`.
    """
    base, checkpoints = _open(base, checkpoints)
    return {name: _norms(deltas) for name, deltas in _all_deltas(base, checkpoints)}


def layer_of(name: str) -> int | None:
    """Layer number of a parameter, -1 for embeddings, None for the rest (pooler, final norm)."""
    if number := re.search(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.", name):
        return int(number[1])
    return -1 if "embed" in name else None


@torch.no_grad()
def fuse(
    base: Model,
    checkpoints: Sequence[Model],
    *,
    method: str = "delta",
    scale: float = 1.0,
    output: str | Path | None = None,
    **options: Any,
) -> dict[str, Tensor] | Path:
    """Merge checkpoints of one base: base + scale * (merge of the deltas).

    Deltas are accumulated in float32 (float64 for float64 tensors); the result has the first
    checkpoint's types. Integer tensors must be equal and are copied.

    Folders are in the sentence-transformers layout, with weights in safetensors, whole or in
    shards. Tokenizer, pooling, prompts and configurations come from the first checkpoint, after
    a check that all checkpoints agree in them.

    Args:
        base: The initialisation: a mapping from names to tensors, or a folder.
        checkpoints: Models with its names and shapes, of the same kind.
        method: A name in `METHODS`.
        scale: Length of the merged delta; 0 gives the base.
        output: For folders: the folder to write, absent or empty.
        **options: Of the method: `granularity` and `power` for "delta".

    Returns:
        The merged mapping, in the order of the base, or the path `output`.

    Raises:
        ValueError: As for :func:`delta_guided_weights`; or the method is unknown, the folders'
            settings differ, their weights are pickled, or a scale is not finite.
        FileNotFoundError: A folder is missing.
        FileExistsError: The output is not empty.
        UnwritableError: The output cannot be written.
    """
    _check_choice("method", method, METHODS)
    if not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number, found {scale}.")
    base, checkpoints = _open(base, checkpoints)
    folders = all(isinstance(model, _Folder) for model in (base, *checkpoints))
    if folders != (output is not None):
        raise ValueError(
            "fuse writes to `output` when base and checkpoints are all folders, and returns a "
            f"mapping when they are mappings: found output={output!r} with "
            f"{'folders' if folders else 'mappings, or both kinds'}."
        )
    if folders:
        _check_empty(Path(output))
        _check_same_settings([checkpoint.folder for checkpoint in checkpoints])
    combine = METHODS[method](base, checkpoints, **options)

    def merged(name: str) -> Tensor:
        origin, ingredients = _read(base, checkpoints, name)
        if not origin.is_floating_point():
            return ingredients[0].clone()
        deltas = _deltas(origin, ingredients)
        return (origin + scale * combine(name, deltas)).to(ingredients[0].dtype)

    if not folders:
        return {name: merged(name) for name in base}
    with atomic_path(output) as temporary:
        _write(temporary, checkpoints[0], merged)
    return Path(output)


# Methods: from base, checkpoints and options to the function that merges one tensor's deltas


def _uniform(base: Mapping[str, Tensor], checkpoints: Sequence[Mapping[str, Tensor]]) -> PerTensor:
    """The uniform soup, mean of the deltas (Wortsman et al., ICML 2022)."""
    return lambda name, deltas: deltas.mean(dim=0)


def _delta(
    base: Mapping[str, Tensor],
    checkpoints: Sequence[Mapping[str, Tensor]],
    *,
    granularity: str = "tensor",
    power: float = 1.0,
) -> PerTensor:
    """Weighted by :func:`delta_guided_weights`, worked out tensor by tensor."""
    weigh = _weigher(base, checkpoints, granularity, power)

    def combine(name: str, deltas: Tensor) -> Tensor:
        weights = weigh(name, deltas).to(deltas.dtype)
        missing = deltas.dim() - weights.dim()
        return (weights.reshape(*weights.shape, *[1] * missing) * deltas).sum(dim=0)

    return combine


METHODS: dict[str, Callable[..., PerTensor]] = {"delta": _delta, "uniform": _uniform}


def _weigher(
    base: Mapping[str, Tensor],
    checkpoints: Sequence[Mapping[str, Tensor]],
    granularity: str,
    power: float,
) -> PerTensor:
    """The function from a tensor's name and deltas (J, *shape) to its weights."""
    _check_choice("granularity", granularity, GRANULARITIES)
    if not math.isfinite(power):
        raise ValueError(f"power: expected a finite number, found {power}.")
    if granularity == "element":
        return lambda name, deltas: _proportions(deltas.abs(), power)
    if granularity == "tensor":
        return lambda name, deltas: _proportions(_norms(deltas), power)

    def group(name: str) -> int | None:
        return layer_of(name) if granularity == "layer" else None

    squares: dict[int | None, Tensor] = defaultdict(lambda: torch.zeros(()))
    for name, deltas in _all_deltas(base, checkpoints):
        squares[group(name)] = squares[group(name)] + _norms(deltas).square()
    weights = {key: _proportions(total.sqrt(), power) for key, total in squares.items()}
    return lambda name, deltas: weights[group(name)]


def _proportions(norms: Tensor, power: float) -> Tensor:
    """Weights proportional to norms ** power over the first dimension, summing to one."""
    # Relative to the norm that weighs most, powers cannot overflow; and the ratio that is 1 by
    # definition settles 0 / 0: all norms zero, or a zero norm under a negative power.
    heaviest = norms.amax(dim=0) if power > 0 else norms.amin(dim=0)
    ratios = torch.where(norms == heaviest, 1.0, norms / heaviest)
    weights = ratios**power
    return weights / weights.sum(dim=0)


def _norms(deltas: Tensor) -> Tensor:
    # In float32 the sum over a large tensor (an embedding table) is off by a thousandth.
    return torch.stack([torch.linalg.vector_norm(d, dtype=torch.float64) for d in deltas])


def _all_deltas(
    base: Mapping[str, Tensor], checkpoints: Sequence[Mapping[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    for name in base:
        origin, ingredients = _read(base, checkpoints, name)
        if origin.is_floating_point():
            yield name, _deltas(origin, ingredients)


def _deltas(origin: Tensor, ingredients: Sequence[Tensor]) -> Tensor:
    """Deviations from the base, (J, *shape), in float32 or wider."""
    dtype = torch.promote_types(origin.dtype, torch.float32)
    return torch.stack([tensor.to(dtype) - origin.to(dtype) for tensor in ingredients])


def _read(
    base: Mapping[str, Tensor], checkpoints: Sequence[Mapping[str, Tensor]], name: str
) -> tuple[Tensor, list[Tensor]]:
    """One tensor of all models, found usable."""
    origin, ingredients = base[name], [checkpoint[name] for checkpoint in checkpoints]
    for label, tensor in zip(_labels(base, checkpoints), (origin, *ingredients), strict=True):
        if tensor.is_floating_point() != origin.is_floating_point():
            raise ValueError(
                f"{label}: expected {origin.dtype} as in the base, found {tensor.dtype} in {name}."
            )
        if not tensor.is_floating_point() and not torch.equal(tensor, origin):
            raise ValueError(
                f"{label}: expected the integers of the base, found others in {name}. Integer "
                "tensors cannot be merged; these models do not have one origin."
            )
        if not tensor.isfinite().all():
            raise ValueError(
                f"{label}: expected finite weights, found NaN or infinity in {name}. Leave this "
                "model out, or take an earlier checkpoint of its run."
            )
    return origin, ingredients


def _open(
    base: Model, checkpoints: Sequence[Model]
) -> tuple[Mapping[str, Tensor], list[Mapping[str, Tensor]]]:
    """All models as mappings, with the same names and shapes."""
    if isinstance(checkpoints, str | Path | Mapping):
        raise TypeError("checkpoints: expected a list of models, found a single one.")
    base, *checkpoints = (
        _Folder(model) if isinstance(model, str | Path) else model for model in (base, *checkpoints)
    )
    if not checkpoints:
        raise ValueError("checkpoints: expected one model or more, found none.")
    expected = _shapes(base)
    for label, checkpoint in zip(_labels(base, checkpoints)[1:], checkpoints, strict=True):
        found = _shapes(checkpoint)
        problems = [
            f"{name} ({found.get(name, 'missing')} beside {expected.get(name, 'missing')})"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        if problems:
            shown = ", ".join(problems[:8]) + (", ..." if len(problems) > 8 else "")
            raise ValueError(
                f"{label}: expected the names and shapes of the base's tensors, found "
                f"{len(problems)} that differ: {shown}. Fuse checkpoints of this very base."
            )
    return base, checkpoints


def _labels(base: Mapping[str, Tensor], checkpoints: Sequence[Mapping[str, Tensor]]) -> list[str]:
    names = ["base", *(f"checkpoint {j}" for j in range(len(checkpoints)))]
    return [
        f"{name} ({model.folder})" if isinstance(model, _Folder) else name
        for name, model in zip(names, (base, *checkpoints), strict=True)
    ]


def _shapes(model: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    if isinstance(model, _Folder):
        return model.shapes
    return {name: tuple(tensor.shape) for name, tensor in model.items()}


def _check_choice(what: str, value: str, choices: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in choices:
        nearest = difflib.get_close_matches(str(value), choices, n=1)
        raise ValueError(
            f"{what}: expected one of {', '.join(choices)}, found {value!r}."
            + (f" Did you mean {nearest[0]!r}?" if nearest else "")
        )


# Folders


class _Folder(Mapping[str, Tensor]):
    """The weights of a model folder; a tensor is read from disk each time it is asked for.

    A tensor's name has its subfolder in front, as in "2_Dense/linear.weight".
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected a model folder, found none.")
        self.files = sorted(self.folder.rglob("*.safetensors"))
        if not self.files:
            pickles = [p for p in self.folder.rglob("*") if p.suffix in {".bin", ".pt", ".pth"}]
            found = f"pickled weights ({pickles[0].name}), which run code" if pickles else "none"
            raise ValueError(
                f"{folder}: expected weights in safetensors, found {found}. Save the model again "
                "with sentence-transformers, which writes safetensors."
            )
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        for file in self.files:
            subfolder = file.parent.relative_to(self.folder).as_posix()
            with safe_open(file, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118 (it is no mapping)
                    if key.endswith("position_ids"):
                        continue  # 0, 1, 2, ...: older libraries stored it, newer ones count
                    name = key if subfolder == "." else f"{subfolder}/{key}"
                    if name in self._places:
                        raise ValueError(
                            f"{folder}: expected each tensor once, found {name} in "
                            f"{self._places[name][0].name} and in {file.name}. Remove the file "
                            "that is out of date."
                        )
                    self._places[name] = file, key
                    self.shapes[name] = tuple(weights.get_slice(key).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        file, key = self._places[name]
        with safe_open(file, framework="pt") as weights:
            return weights.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def names_in(self, file: Path) -> dict[str, str]:
        """The names of the tensors of one file, by their keys there."""
        return {key: name for name, (place, key) in self._places.items() if place == file}


def _check_empty(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"{output}: expected a new or an empty folder, found content. Remove it or choose "
            "another folder."
        )


def _check_same_settings(folders: Sequence[Path]) -> None:
    """Refuse checkpoints that would not encode a text alike, were their weights equal."""
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
                raise ValueError(
                    f"{folder}: expected the {file} of {folders[0]}, found another or none. "
                    "Models that differ in modules, pooling, prompts or tokenizer cannot be fused."
                )


def _stable(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {key: value for key, value in settings.items() if key not in _VOLATILE_KEYS}


def _write(output: Path, like: _Folder, merged: Callable[[str], Tensor]) -> None:
    """A model folder laid out like another, with merged weights in files of the same names."""
    output.mkdir()
    for path in sorted(like.folder.rglob("*")):  # a folder comes before what is in it
        target = output / path.relative_to(like.folder)
        if path.is_dir():  # kept even when empty: a module may have no file (Normalize)
            target.mkdir()
        elif path.suffix in _COPIED_SUFFIXES:
            shutil.copyfile(path, target)
    for file in like.files:
        with safe_open(file, framework="pt") as weights:
            metadata = weights.metadata()
        contents = {key: merged(name) for key, name in like.names_in(file).items()}
        save_file(contents, output / file.relative_to(like.folder), metadata=metadata)
