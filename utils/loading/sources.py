"""Importable modules from source text. Knows text and folders, not models; nothing here judges what it imports.

`import_source` writes the text below the cache, under a name made of its own hash, and imports it as
`utils.loading.generated.m_<hash>.<file>`. So `inspect.getsource`, `torch.compile` and tracebacks see a real file, and a
child process on the same machine imports the same dotted name again, which is what unpickling needs. Files of one
source see each other and nobody else's: absolute imports of siblings become relative ones on their line.
"""

from __future__ import annotations

import ast
import importlib
import io
import logging
import re
import shutil
import sys
import tokenize
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from types import ModuleType

from utils.errors import ModelLoadError
from utils.loading import generated
from utils.loading.cache import cache_root, private_folder, remove_folder, write_folder
from utils.loading.source_edits import Places, edited

_LOG = logging.getLogger(__name__)


def import_source(files: Mapping[str, str], main: str) -> ModuleType:
    """Import `main` together with the files that it needs.

    Args:
        files: relative POSIX path ("model.py", "layers/attention.py") → text.
        main: the path of the file to import.

    Returns:
        The module of `main`; the same object where the same text was imported before.

    Raises:
        ModelLoadError: a file is no Python, or the path is no module name.
        BaseException: whatever the module itself raises; modules and folder of a first import are then removed.
    """
    prepared = prepare_package(files)
    package = package_name(prepared)
    _forget_if_moved(package)
    created = _materialise(prepared, package)
    before = set(sys.modules)
    try:
        importlib.invalidate_caches()
        return importlib.import_module(f"{generated.__name__}.{package}.{module_path(main)}")
    except BaseException:
        _forget(package, before)
        if created:
            shutil.rmtree(generated.folder_of(package), ignore_errors=True)
        raise


def module_path(path: str) -> str:
    """The dotted name of a file inside its package: "layers/my-block.py" → "layers.my_block"."""
    parts = list(PurePosixPath(path).with_suffix("").parts)
    if len(parts) > 1 and parts[-1] == "__init__":
        parts.pop()
    return ".".join(re.sub(r"\W", "_", part) for part in parts)


def prepare_package(files: Mapping[str, str]) -> dict[str, bytes]:
    """The files as they are written: importable names, sibling imports made relative, a package file in each folder."""
    parsed = {path: parse_python(text, path) for path, text in files.items()}
    modules = {module_path(path) for path in files}
    prepared: dict[str, bytes] = {}
    for path, text in files.items():
        name = module_path(path).replace(".", "/")
        is_package = PurePosixPath(path).name == "__init__.py"
        target = "__init__.py" if path == "__init__.py" else f"{name}/__init__.py" if is_package else f"{name}.py"
        if target in prepared:
            raise ModelLoadError(f"Two files would become the module {name!r}; rename {path}.")
        prepared[target] = relative_imports(text, parsed[path], modules, target.count("/")).encode("utf-8")
    for target in list(prepared):
        for parent in PurePosixPath(target).parents:
            prepared.setdefault((parent / "__init__.py").as_posix(), b"")
    return prepared


def package_name(prepared: Mapping[str, bytes]) -> str:
    """`m_` and 16 hex digits that depend on every path and byte."""
    return f"m_{generated.digest(prepared)}"


def parse_python(text: str, name: str) -> ast.Module:
    """Parse without running.

    Raises:
        ModelLoadError: a syntax error (file, line and a caret under the place), or code nested too deeply to read.
    """
    import warnings

    _refuse_other_encoding(text, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "invalid escape sequence": the author's style, not our caller's business
            return ast.parse(text, filename=name)
    except SyntaxError as error:
        raise ModelLoadError(_syntax_message(error, name, text)) from error
    except (RecursionError, MemoryError) as error:
        raise ModelLoadError(f"{name} is nested too deeply to be read.") from error
    except ValueError as error:  # a NUL character
        raise ModelLoadError(f"{name} is no Python source: {error}.") from error


def _refuse_other_encoding(text: str, name: str) -> None:
    """Refuse a declared encoding in which the bytes would mean another text than the one that is reviewed.

    Python decodes a file as its first lines say (PEP 263): in UTF-7 a comment can hold a line break and code.
    """
    data = text.encode("utf-8", errors="surrogatepass")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        same = data.decode(encoding) == text
    except (SyntaxError, LookupError, ValueError) as error:  # an unknown encoding, or bytes that it does not know
        raise ModelLoadError(
            f"{name} declares an encoding that its text is not in ({error}); save it as UTF-8."
        ) from error
    if not same:
        raise ModelLoadError(
            f"{name} declares the encoding {encoding!r}, in which it says something else; save it as UTF-8."
        )


def _syntax_message(error: SyntaxError, name: str, text: str) -> str:
    lines = text.splitlines()
    number = error.lineno or 1
    line = (error.text or (lines[number - 1] if number <= len(lines) else "")).rstrip("\n")
    start = max(0, (error.offset or 1) - 61)
    caret = " " * max(0, (error.offset or 1) - 1 - start) + "^"
    return f"{name} is no valid Python: {error.msg} (line {number}).\n    {line[start : start + 120]}\n    {caret}"


def local_files(main: str, read: Callable[[str], str | None]) -> dict[str, str]:
    """`main` and every sibling file that it imports, directly or through another: path → text.

    Args:
        main: relative POSIX path of the file to begin with.
        read: text of a relative path, or None where there is no such file.
    """
    found: dict[str, str] = {}
    waiting = [main]
    while waiting:
        path = waiting.pop()
        text = None if path in found else read(path)
        if text is None:
            continue
        found[path] = text
        waiting.extend(_candidates(parse_python(text, path), path))
    return found


def _candidates(tree: ast.Module, path: str) -> list[str]:
    """Paths that the imports of one file could mean."""
    folder = PurePosixPath(path).parent
    dotted: list[tuple[PurePosixPath, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted += [(PurePosixPath(), alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base_folder(folder, node.level)
            if base is not None:
                dotted += [(base, f"{node.module or ''}.{alias.name}".strip(".")) for alias in node.names]
                dotted.append((base, node.module or ""))
    paths: dict[str, None] = {}
    for base, name in dotted:
        parts = [part for part in name.split(".") if part and part != "*"]
        for end in range(len(parts), -1, -1):
            stem = base.joinpath(*parts[:end])
            paths[(stem / "__init__.py").as_posix()] = None
            if end:
                paths[f"{stem.as_posix()}.py"] = None
    return [name for name in paths if name != "__init__.py" or folder == PurePosixPath()]


def _base_folder(folder: PurePosixPath, level: int) -> PurePosixPath | None:
    """Where an import of this level looks; None above the root."""
    if level == 0:
        return PurePosixPath()
    if level - 1 > len(folder.parts):
        return None
    return PurePosixPath(*folder.parts[: len(folder.parts) - (level - 1)])


def relative_imports(text: str, tree: ast.Module, modules: set[str], depth: int) -> str:
    """`text` with absolute imports of sibling modules made relative, every statement on the line where it was.

    Args:
        text: the source.
        tree: its syntax tree.
        modules: dotted names inside the package.
        depth: folders between the package and this file.
    """
    roots = {name.split(".")[0] for name in modules}
    places = Places(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    written = [places.text(places.begin(node), places.end(node)) for node in imports]
    news = [_relative(node, old, roots, "." * (depth + 1)) for node, old in zip(imports, written, strict=True)]
    return edited(text, [places.replacing(node, new) for node, new in zip(imports, news, strict=True)])


def _relative(node: ast.Import | ast.ImportFrom, written: str, roots: set[str], dots: str) -> str:
    """The statement with siblings named relatively; as it was written where it names none."""
    if isinstance(node, ast.ImportFrom):
        if node.level or (node.module or "").split(".")[0] not in roots:
            return written
        return re.sub(r"^from(?:\s|\\\r?\n)+", lambda match: match.group() + dots, written)
    if not any(alias.name.split(".")[0] in roots for alias in node.names):
        return written
    statements = "; ".join(_relative_alias(alias, roots, dots) for alias in node.names)
    word, rest = statements.split(" ", 1)
    return word + " \\\n" * written.count("\n") + " " + rest  # as many lines as before


def _relative_alias(alias: ast.alias, roots: set[str], dots: str) -> str:
    parent, _, leaf = alias.name.rpartition(".")
    root = alias.name.split(".")[0]
    if root not in roots:
        return f"import {_alias(alias)}"
    if alias.asname:
        return f"from {dots}{parent} import {leaf} as {alias.asname}"
    # `import a.b` binds a, and makes a.b reachable
    return (f"from {dots}{parent} import {leaf} as _{leaf}; " if parent else "") + f"from {dots} import {root}"


def _alias(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


def _materialise(prepared: Mapping[str, bytes], package: str) -> bool:
    """Make sure that the folder of `package` holds exactly `prepared`; True if this call wrote it."""
    private_folder(cache_root())
    folder = generated.folder_of(package)
    if folder.exists() and not generated.is_intact(package):
        _LOG.warning("The cached source %s was changed on disk; it is written anew.", folder)
        _forget(package, set())
        remove_folder(folder)
    return not folder.exists() and write_folder(folder, prepared)


def _forget_if_moved(package: str) -> None:
    """Modules that were imported from another cache folder may have lost their files: they are imported anew."""
    known = sys.modules.get(f"{generated.__name__}.{package}")
    if known is not None and list(known.__path__) != [str(generated.folder_of(package))]:
        _forget(package, set())


def _forget(package: str, before: set[str]) -> None:
    """Take modules of `package` that are not in `before` out of `sys.modules`."""
    prefix = f"{generated.__name__}.{package}"
    for name in list(sys.modules):
        if name not in before and (name == prefix or name.startswith(prefix + ".")):
            del sys.modules[name]
            parent = sys.modules.get(name.rpartition(".")[0])
            if parent is not None and parent.__dict__.get(name.rpartition(".")[2]) is not None:
                delattr(parent, name.rpartition(".")[2])
