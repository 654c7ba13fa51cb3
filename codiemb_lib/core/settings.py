"""Settings in YAML files, checked strictly: unknown keys and keys that stand twice are refused."""

import math
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from codiemb_lib.core.files import read_text
from codiemb_lib.core.words import CodiembError, unknown

S = TypeVar("S", bound=BaseModel)
# What becomes the name of a folder.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=100)]


class Settings(BaseModel):
    """Settings that do not change, with no other keys than their own, and with finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known_and_numpy_is_plain(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for key, value in given.items():
            if key not in cls.model_fields:
                raise ValueError(unknown("key", str(key), cls.model_fields))
            listed = value if isinstance(value, list | tuple) else [value]
            switches = [str(one).lower() for one in listed if isinstance(one, bool)]
            if switches and "bool" not in str(cls.model_fields[key].annotation):
                raise ValueError(f"{key}: expected no switch, found {switches[0]}")
        return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in given.items()}


def read_settings(
    path: Path, model: type[S], error: type[CodiembError], *, beside: BaseModel | None = None
) -> S:
    """The settings in a YAML file; what is wrong with it is raised as an `error`.

    What the file does not name is as in `beside`: a whole key, or single ones of a section.
    """
    text = read_text(path, error)
    try:
        given = yaml.load(text, _Yaml)
        for name, other in (beside.model_dump(exclude_unset=True) if beside else {}).items():
            own = given.setdefault(name, other)
            if isinstance(getattr(beside, name), BaseModel) and isinstance(own, dict):
                given[name] = other | own
        return model.model_validate(given)
    except ValidationError as wrong:
        raise error(f"{path}: {explain(wrong)}") from wrong
    except (yaml.YAMLError, ValueError, RecursionError) as wrong:  # 5,000 digits; [[[[...
        raise error(f"{path}: expected YAML, found: {' '.join(str(wrong).split())}") from wrong


# What values without quotation marks are, if they are no texts.
_PLAIN = {"merge": "<<", "null": "~|null|Null|NULL|", "bool": "true|True|TRUE|false|False|FALSE"}
_PLAIN |= {"int": r"[-+]?\d+", "float": r"[-+]?(\.\d+|\d+\.?\d*)([eE][-+]?\d+)?"}


class _Yaml(yaml.SafeLoader):
    """YAML with decimal numbers as of 1.2 (1e-3 is one, 010 is ten), and each key once."""

    yaml_constructors = yaml.SafeLoader.yaml_constructors | {
        "tag:yaml.org,2002:int": lambda _, node: int(node.value),  # 010 would be octal
        "tag:yaml.org,2002:float": lambda _, node: _finite(node),
    }
    yaml_implicit_resolvers = {
        None: [(f"tag:yaml.org,2002:{tag}", re.compile(f"({p})$")) for tag, p in _PLAIN.items()]
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if isinstance(key, str) and keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} a second time, {node.start_mark}")
        return super().construct_mapping(node, deep)


def _finite(node: yaml.ScalarNode) -> float:
    if not math.isfinite(value := float(node.value)):
        raise yaml.YAMLError(f"a number beyond all limits, {node.value}, {node.start_mark}")
    return value


def explain(error: ValidationError) -> str:
    """What is wrong with settings: a clause for each problem, which begins with its key."""
    clauses = []
    for problem in error.errors():
        clause = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".removeprefix(": ")
        if not isinstance(problem["input"], dict):  # a whole section would be too much to show
            text = isinstance(problem["input"], str)  # aliases of YAML may stand for billions
            clause += f", found {(repr if text else reprlib.repr)(problem['input']):.200}"
        clauses.append(clause.replace("Value error, ", "", 1))
    return "; ".join(clauses)
