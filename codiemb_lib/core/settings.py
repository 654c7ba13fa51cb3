"""Settings in YAML files, checked strictly: unknown keys and keys that stand twice are refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from codiemb_lib.core.errors import CodiembError
from codiemb_lib.core.words import unknown

S = TypeVar("S", bound=BaseModel)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]  # becomes that of a folder


class Settings(BaseModel):
    """Settings that do not change, with no other keys than their own, and with finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def read_settings(path: Path, model: type[S], error: type[CodiembError]) -> S:
    """The settings in a YAML file; what is wrong with it is raised as an `error`."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
        if not isinstance(content, dict):
            raise error(f"{path}: expected a mapping of keys, found {type(content).__name__}.")
        return model.model_validate(content)
    except yaml.YAMLError as wrong:
        raise error(f"{path}: expected YAML, found: {' '.join(str(wrong).split())}") from wrong
    except ValidationError as wrong:
        raise error(f"{path}: {explain(wrong, model)}") from wrong


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings have each key once, as the standard has it."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} a second time", key.start_mark
                )
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep)


def explain(error: ValidationError, model: type[BaseModel], inside: str = "") -> str:
    """What is wrong with settings, or with a section: a clause for each problem, naming the key."""
    lines = []
    for problem in error.errors():
        location = [*([inside] if inside else []), *problem["loc"]]
        key = ".".join(map(str, location)) or "settings"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _model_at(model, problem["loc"][:-1]).model_fields
            lines.append(f"{key}: {unknown('key', str(location[-1]), known)}")
        elif not problem["loc"]:  # of the whole: all of it would be too much to show
            lines.append(f"{key}: {message}")
        else:
            lines.append(f"{key}: {message}, found {problem['input']!r:.200}")
    return "; ".join(lines)


def _model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel]:
    """The section of a model at a location such as ("training", "batch_sizes")."""
    for part in location:  # a key of a mapping, or a place in a list, leads no deeper
        if part in model.model_fields:
            model = next(_models(model.model_fields[part].annotation), model)
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models within an annotation such as `dict[str, VariantSettings]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
