"""Files of settings as plain mappings: JSON, and YAML where a person wrote it by hand. Knows no setting.

YAML is read as its version 1.2 means it: `5e-5` is a number and `off` is a word, which the usual reader of Python gets wrong.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils._extras import require
from utils.errors import ConfigError
from utils.loading.strict_json import parse_json

if TYPE_CHECKING:
    import yaml

YAML_ENDINGS = (".yaml", ".yml")
_PREFIX = "tag:yaml.org,2002:"
_WORDS = {
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    "int": (re.compile(r"[-+]?[0-9]+"), "-+0123456789"),
    "float": (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), "-+.0123456789"),
}
"""What YAML 1.2 (core schema, §10.3.2) takes for a truth value and for a number, with first characters."""
_DROPPED = ("bool", "int", "float", "timestamp")
"""Of the usual reader's readings of words, those that go: a date, a time and 1_000 are words here, and 010 is ten."""


def read_settings(path: str | Path) -> dict[str, Any]:
    """The mapping in a file of settings: YAML by its ending, else JSON.

    Raises:
        ConfigError: no such file, not what its ending says, no mapping, or a name twice.

    Example:
        >>> read_settings("run.yaml")["learning_rate"]
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"There is no file {file} to read a TrainingConfig from.")
    in_yaml = file.suffix.lower() in YAML_ENDINGS
    try:
        text = file.read_text(encoding="utf-8-sig")
        values = _from_yaml(text) if in_yaml else parse_json(text, file.name)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:  # of UTF-8 and of YAML
        raise ConfigError(f"{file.name} is no {'YAML' if in_yaml else 'JSON'}: {error}") from error
    if not isinstance(values, dict):
        kind = "YAML mapping" if in_yaml else "JSON object"
        raise ConfigError(f"{file.name} must hold a {kind} of settings; it holds a {type(values).__name__}.")
    return values


def _from_yaml(text: str) -> Any:
    library = require("yaml", extra="training", feature="A file of settings in YAML")
    try:
        return library.load(text, Loader=_loader())  # plain values only: it is built on SafeLoader
    except library.YAMLError as error:
        raise ValueError(str(error)) from error


def _loader() -> type[yaml.SafeLoader]:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.2's words, and every name once."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            twice = sorted({str(name) for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"it names {', '.join(twice)} twice.")
            return super().construct_mapping(node, deep)

    usual = yaml.SafeLoader.yaml_implicit_resolvers
    dropped = {_PREFIX + name for name in _DROPPED}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, words) for tag, words in pairs if tag not in dropped] for first, pairs in usual.items()
    }
    for name, (words, first) in _WORDS.items():
        Loader.add_implicit_resolver(_PREFIX + name, re.compile(f"^(?:{words.pattern})$"), list(first))
    Loader.add_constructor(_PREFIX + "int", lambda loader, node: int(loader.construct_scalar(node)))
    return Loader
