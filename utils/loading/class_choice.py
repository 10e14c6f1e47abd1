"""Which file and which class of a source is the model. Reads syntax and classes, builds nothing."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import ModuleType

from torch import nn

from utils.errors import ModelLoadError
from utils.loading.model_config import ModelConfig
from utils.loading.sources import parse_python

_NAME_KEYS = ("class_name", "model_class", "class", "model_name", "name", "architecture", "model_type")
_MODULE_BASES = frozenset(
    {"Module", "PreTrainedModel", "LightningModule", "Sequential", "Transformer", "TransformerEncoder"}
)


def module_classes(text: str, name: str) -> tuple[str, ...]:
    """Names of the classes in a source that derive, as far as its syntax tells, from `nn.Module`.

    Raises:
        ModelLoadError: the text is no valid Python.
    """
    classes = [node for node in parse_python(text, name).body if isinstance(node, ast.ClassDef)]
    found: list[str] = []
    for node in classes:
        bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
        if bases & (_MODULE_BASES | set(found)) or any(base.endswith("PreTrainedModel") for base in bases):
            found.append(node.name)
    return tuple(found)


def choose_main_file(files: Mapping[str, str]) -> str | None:
    """The file that holds the model: model.py, else the one file with module classes that no other such file imports.

    Args:
        files: relative path → text of the top-level Python files.

    Returns:
        Its name, or None where none or several could be it.
    """
    if "model.py" in files:
        return "model.py"
    holders = [name for name, text in files.items() if name.endswith(".py") and module_classes(text, name)]
    if len(holders) > 1:
        used = {imported for name in holders for imported in _imported_names(files[name], name)}
        holders = [name for name in holders if name.removesuffix(".py") not in used]
    return holders[0] if len(holders) == 1 else None


def _imported_names(text: str, name: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(parse_python(text, name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found - {name.removesuffix(".py")}


def choose_class(
    module: ModuleType, text: str, config: ModelConfig, class_name: str | None = None, hint: str | None = None
) -> type[nn.Module]:
    """The class of `module` that is the model.

    Args:
        module: the imported main file.
        text: its source.
        config: may name the class, or hold the canvas nodes that its attributes are named after.
        class_name: what the caller asked for; must exist.
        hint: a name from the link, used where it fits.

    Raises:
        ModelLoadError: there is no module class, or several could be the model; the message lists them.
    """
    classes = _classes_of(module)
    if class_name is not None:
        return _named_class(module, classes, class_name)
    if not classes:
        raise ModelLoadError(f"{_file(module)} defines no class that derives from torch.nn.Module.")
    names = [value for key in _NAME_KEYS if isinstance(value := config.raw.get(key), str)]
    names += [name for name in config.raw.get("architectures") or () if isinstance(name, str)]
    for name in [*names, config.model_name, hint]:
        found = [kind for kind in classes if name and _plain(kind.__name__) == _plain(name)]
        if len(found) == 1:
            return found[0]
    choices = _not_used_by_others(classes, text) or classes
    choices = choices if len(choices) == 1 else _with_most_nodes(choices, text, config)
    if len(choices) == 1:
        return choices[0]
    listed = ", ".join(kind.__name__ for kind in choices)
    raise ModelLoadError(
        f"{_file(module)} defines several classes that could be the model: {listed}. "
        f"Say which: load_model(..., class_name={choices[-1].__name__!r}), or name it as "
        f'"class_name" in config.json.'
    )


def _classes_of(module: ModuleType) -> list[type[nn.Module]]:
    """Concrete module classes defined in the file, else those it imports from its siblings."""
    everything = [
        value
        for value in dict.fromkeys(v for v in vars(module).values() if isinstance(v, type))
        if issubclass(value, nn.Module) and not inspect.isabstract(value)
    ]
    own = [value for value in everything if value.__module__ == module.__name__]
    package = f"{module.__package__}."
    return own or [value for value in everything if value.__module__.startswith(package)]


def _named_class(module: ModuleType, classes: Iterable[type[nn.Module]], class_name: str) -> type[nn.Module]:
    value = getattr(module, class_name, None)
    if isinstance(value, type) and issubclass(value, nn.Module):
        return value
    names = [kind.__name__ for kind in classes]
    near = get_close_matches(class_name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ModelLoadError(
        f"{_file(module)} defines no module class {class_name!r}.{hint} It defines: {', '.join(names) or 'none'}."
    )


def _not_used_by_others(classes: list[type[nn.Module]], text: str) -> list[type[nn.Module]]:
    """Classes that no other of the classes mentions, directly or through functions of the file."""
    uses = _mentions(text)
    names = {kind.__name__ for kind in classes}
    used: set[str] = set()
    for name in names:
        used |= _reachable(name, uses) - {name}
    return [kind for kind in classes if kind.__name__ not in used]


def _mentions(text: str) -> dict[str, set[str]]:
    """Top-level name → names that its definition mentions (annotations and `isinstance` tests aside)."""
    uses: dict[str, set[str]] = {}
    for node in parse_python(text, "model.py").body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            uses[node.name] = _loaded_names(node)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    uses[target.id] = _loaded_names(node.value)
    return uses


def _loaded_names(root: ast.AST) -> set[str]:
    found: set[str] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            continue
        if isinstance(node, ast.Name):
            found.add(node.id)
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns"):
                stack.extend(
                    item for item in (value if isinstance(value, list) else [value]) if isinstance(item, ast.AST)
                )
    return found


def _reachable(name: str, uses: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for used in uses.get(waiting.pop(), set()) & uses.keys():
            if used not in found:
                found.add(used)
                waiting.append(used)
    return found


def _with_most_nodes(choices: list[type[nn.Module]], text: str, config: ModelConfig) -> list[type[nn.Module]]:
    """Of several classes, those whose attributes are named after the most canvas nodes."""
    bodies = {
        node.name: set(re.findall(r"\bself\.(\w+)", ast.unparse(node)))
        for node in parse_python(text, "model.py").body
        if isinstance(node, ast.ClassDef)
    }
    ids = [node.id for node in config.nodes]
    scores = {
        kind: sum(any(a == i or a.startswith(f"{i}_") for a in bodies.get(kind.__name__, ())) for i in ids)
        for kind in choices
    }
    best = max(scores.values())
    return [kind for kind in choices if scores[kind] == best] if best else choices


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


def _file(module: ModuleType) -> str:
    return f"{module.__name__.rpartition('.')[2]}.py"
