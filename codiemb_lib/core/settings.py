"""Settings in YAML files, checked strictly: unknown keys and keys that stand twice are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from codiemb_lib.core.errors import CodiembError
from codiemb_lib.core.words import unknown

S = TypeVar("S", bound=BaseModel)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]  # becomes that of a folder


class Settings(BaseModel):
    """Settings that do not change, with no other keys than their own, and with finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(unknown("key", str(key), cls.model_fields))
        return given


def read_settings(path: Path, model: type[S], error: type[CodiembError]) -> S:
    """The settings in a YAML file; what is wrong with it is raised as an `error`."""
    try:
        return model.model_validate(yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys))
    except yaml.YAMLError as wrong:
        raise error(f"{path}: expected YAML, found: {' '.join(str(wrong).split())}") from wrong
    except ValidationError as wrong:
        raise error(f"{path}: {explain(wrong)}") from wrong


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings have each key once, as the standard has it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if isinstance(key, str) and keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} a second time, {node.start_mark}")
        return super().construct_mapping(node, deep)


def explain(error: ValidationError) -> str:
    """What is wrong with settings: a clause for each problem, which begins with its key."""
    clauses = []
    for problem in error.errors():
        clause = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".removeprefix(": ")
        if not isinstance(problem["input"], dict):  # a whole section would be too much to show
            clause += f", found {problem['input']!r:.200}"
        clauses.append(clause.replace("Value error, ", "", 1))
    return "; ".join(clauses)
