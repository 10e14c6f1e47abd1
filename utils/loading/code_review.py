"""Reads a model's source without running it: what it imports, and which of its calls are risky.

The review is advice to a person, and a gate for the loader; it is no sandbox. Code that wants to hide from a reader of
syntax can do so: whoever loads a model runs its author's code.
"""

from __future__ import annotations

import ast
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from utils._tables import html_table, text_table
from utils.errors import ModelLoadError
from utils.loading.imports_in_source import ImportedModule, imports_of
from utils.loading.names_in_source import Names, constant_text, names_handed_on
from utils.loading.risk_places import answered_questions, followed_values
from utils.loading.risk_rules import (
    CALLED_METHODS,
    METHODS,
    POWERFUL_MODULES,
    SEVERITIES,
    Severity,
    canonical,
    rule_for,
)
from utils.loading.sources import parse_python

MOST_NODES = 200_000
"""Elements of a syntax tree that are reviewed; the largest model file of transformers has 27,000."""

_DYNAMIC_NAMES = frozenset({"getattr", "setattr", "delattr"})
_REACHED = "reaches a powerful module through another one"
_WRITE_MODES = frozenset("wax+")
_MODES = frozenset("rwaxbt+")


@dataclass(frozen=True, order=True)
class Finding:
    """One risky place.

    Attributes:
        file_name: the file it stands in.
        line: line number, from 1.
        severity: "info", "caution" or "danger".
        kind: "network", "file", "process", "dynamic execution", "pickle" or "environment".
        call: the full name of what is used, aliases resolved: "os.system".
        why: what that does.
        code: the line as written, shortened.
    """

    file_name: str
    line: int
    severity: Severity
    kind: str
    call: str
    why: str
    code: str

    @property
    def severity_rank(self) -> int:
        """0 for info, 1 for caution, 2 for danger."""
        return SEVERITIES.index(self.severity)


@dataclass(frozen=True)
class CodeReview:
    """What reading the source told."""

    findings: tuple[Finding, ...] = ()
    imports: tuple[ImportedModule, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)
    """File name → SHA-256 of its text in UTF-8."""

    @property
    def max_severity(self) -> Severity | None:
        """The gravest severity found; None where nothing was."""
        return max((finding.severity for finding in self.findings), key=SEVERITIES.index, default=None)

    @property
    def missing(self) -> tuple[ImportedModule, ...]:
        """Packages that the source needs on import and this runtime lacks."""
        return tuple(module for module in self.imports if module.status == "missing" and not module.optional)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not any(name.endswith(".py") for name in self.sha256):
            return "The source holds no code."
        files = f"{len(self.sha256)} file{'s' if len(self.sha256) != 1 else ''}"
        if not self.findings:
            return f"Read {files}: no risky calls."
        counts = [(severity, sum(f.severity == severity for f in self.findings)) for severity in reversed(SEVERITIES)]
        return f"Read {files}: " + ", ".join(f"{count} × {severity}" for severity, count in counts if count) + "."

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """Findings of this severity or a graver one."""
        return tuple(f for f in self.findings if f.severity_rank >= SEVERITIES.index(severity))

    def summary(self) -> str:
        """Plain text: verdict, findings, imports, hashes."""
        parts = [self.verdict]
        if self.findings:
            parts.append(text_table(("severity", "place", "uses", "what it does", "code"), self._finding_rows()))
        if self.imports:
            parts.append(text_table(("import", "status", "first line"), self._import_rows()))
        parts += [f"SHA-256 {name}: {digest}" for name, digest in self.sha256.items()]
        return "\n\n".join(parts)

    def _finding_rows(self) -> list[tuple[str, ...]]:
        ordered = sorted(self.findings, key=lambda f: (-f.severity_rank, f.file_name, f.line))
        return [(f.severity, f"{f.file_name}:{f.line}", f.call, f"{f.kind}: {f.why}", f.code) for f in ordered]

    def _import_rows(self) -> list[tuple[str, ...]]:
        return [(m.name, m.status + (" (optional)" if m.optional else ""), str(m.line)) for m in self.imports]

    def _repr_html_(self) -> str:
        rows = self._finding_rows()
        parts = [f"<p><b>Code review.</b> {html.escape(self.verdict)}</p>"]
        if rows:
            classes = [f"tb-{row[0]}" for row in rows]
            parts.append(html_table(("severity", "place", "uses", "what it does", "code"), rows, classes=classes))
        parts.append(html_table(("import", "status", "first line"), self._import_rows()))
        parts.append(html_table(("file", "SHA-256"), list(self.sha256.items())))
        return "".join(parts)


def review_source(
    text: str,
    file_name: str = "model.py",
    siblings: Iterable[str] = (),
    handed_on: Mapping[str, frozenset[str]] | None = None,
) -> CodeReview:
    """Review one file.

    Args:
        text: the source.
        file_name: what findings and messages call it.
        siblings: top-level module names that lie beside it.
        handed_on: "module.name" of the siblings → what that name stands for there, as `names_handed_on` gives it.

    Raises:
        ModelLoadError: the text is no valid Python (line and caret), or nested too deeply to be read.
    """
    tree = parse_python(text, file_name)
    nodes = sum(1 for _ in ast.walk(tree))
    if nodes > MOST_NODES:
        raise ModelLoadError(
            f"{file_name} has {nodes:,} elements; at most {MOST_NODES:,} are reviewed, many times what a model takes. Split it."
        )
    try:
        findings = _Reader(tree, text, file_name, handed_on or {}).findings()
    except RecursionError as error:
        raise ModelLoadError(f"{file_name} is nested too deeply to be reviewed.") from error
    digest = hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
    return CodeReview(findings, imports_of(tree, frozenset(siblings)), {file_name: digest})


def review_files(files: Mapping[str, str]) -> CodeReview:
    """Review every file of a source (relative path → text) as one."""
    siblings = {name.split("/")[0].removesuffix(".py") for name in files}
    handed_on = names_handed_on({name: parse_python(text, name) for name, text in files.items()})
    reviews = [review_source(text, name, siblings, handed_on) for name, text in files.items()]
    imports: dict[str, ImportedModule] = {}
    for review in reviews:
        for module in review.imports:
            known = imports.get(module.name)
            if known is None or (known.optional and not module.optional):
                imports[module.name] = module
    return CodeReview(
        tuple(finding for review in reviews for finding in review.findings),
        tuple(sorted(imports.values(), key=lambda module: module.name)),
        {name: digest for review in reviews for name, digest in review.sha256.items()},
    )


class _Reader:
    """Walks one syntax tree and collects findings."""

    def __init__(self, tree: ast.Module, text: str, file_name: str, handed_on: Mapping[str, frozenset[str]]) -> None:
        self.tree, self.file_name = tree, file_name
        self.lines = text.splitlines()
        self.names = Names(tree, handed_on)
        self.found: dict[tuple[int, str], Finding] = {}
        self.called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        self.followed, self.asked = followed_values(tree), answered_questions(tree)

    def findings(self) -> tuple[Finding, ...]:
        self._visit(self.tree, frozenset())
        return tuple(sorted(self.found.values()))

    def _visit(self, node: ast.AST, hidden: frozenset[str]) -> None:
        """Depth first; `hidden` are parameters of enclosing functions that hide a builtin of the same name."""
        stack: list[tuple[ast.AST, frozenset[str]]] = [(node, hidden)]
        while stack:
            node, hidden = stack.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                hidden |= {argument.arg for argument in _arguments(node.args)}
            self._inspect(node, hidden)
            stack.extend((child, hidden) for child in ast.iter_child_nodes(node))

    def _inspect(self, node: ast.AST, hidden: frozenset[str]) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            self._inspect_import(node)
        elif isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Load):
            self._inspect_reference(node, hidden)
        elif isinstance(node, ast.Attribute | ast.Subscript):
            self._inspect_change(node)
        elif isinstance(node, ast.Call):
            self._inspect_call(node)
        elif isinstance(node, ast.FunctionDef) and node.name in ("__reduce__", "__reduce_ex__"):
            self._add(node, "pickle", "caution", node.name, "decides what unpickling runs")

    def _inspect_import(self, node: ast.Import | ast.ImportFrom) -> None:
        """Importing a risky module is at most a caution; what is done with it is graded where it is done."""
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [f"{node.module or ''}.{alias.name}".removesuffix(".*") for alias in node.names]
            names = [name for name in names if not node.level or canonical(name) in POWERFUL_MODULES]
        for name in names:
            if canonical(name) in POWERFUL_MODULES and canonical(name) != name:
                self._add(node, "dynamic execution", "caution", name, _REACHED)
            rule = rule_for(canonical(name))
            if rule is not None and rule[1] != "info":
                self._add(node, rule[0], "caution", name, "imports what " + rule[2])

    def _inspect_reference(self, node: ast.Name | ast.Attribute | ast.Subscript, hidden: frozenset[str]) -> None:
        if isinstance(node, ast.Name):
            if node.id in hidden and node.id not in self.names.bound:
                return
            if node.id in self.names.assigned and id(node) not in self.called and node.id not in self.names.bound:
                return  # a variable that has the name of a builtin
        names = sorted(self.names.of(node))
        for dotted in names:
            self._grade(node, dotted)
        self._inspect_whole_module(node, names)
        if isinstance(node, ast.Attribute):
            if node.attr in METHODS:
                kind, severity, why = METHODS[node.attr]
                severity = "danger" if self.names.of(node.value) & POWERFUL_MODULES else severity
                self._add(node, kind, severity, f"….{node.attr}", why)
            if node.attr in CALLED_METHODS and not any(rule_for(name) or name == "platform.system" for name in names):
                self._inspect_called_method(node)

    def _inspect_called_method(self, node: ast.Attribute) -> None:
        """`x.system("…")` on an unknown x; a model may have a layer `self.system`."""
        call = self._call_of(node)
        own = isinstance(node.value, ast.Name) and node.value.id == "self"
        if call is not None and (call.args or call.keywords) and not own:
            kind, severity, why = CALLED_METHODS[node.attr]
            self._add(node, kind, severity, f"….{node.attr}", why)

    def _inspect_whole_module(self, node: ast.expr, names: Sequence[str]) -> None:
        """A powerful module itself: reached through another one, or handed on to where the review cannot follow it."""
        for name in names:
            if name == "sys.modules" and id(node) not in self.asked:
                self._add(node, "dynamic execution", "danger", name, "takes any module out of the interpreter's table")
            if name not in POWERFUL_MODULES:
                continue
            if isinstance(node, ast.Attribute) and node.attr.lstrip("_") == name:
                self._add(node, "dynamic execution", "caution", ast.unparse(node)[:80], _REACHED)
            if id(node) not in self.followed and id(node) not in self.asked:
                self._add(node, "dynamic execution", "danger", f"{name} as a value", "hands a powerful module on")

    def _inspect_change(self, node: ast.Attribute | ast.Subscript) -> None:
        """Assignments to or deletions of what belongs to the interpreter or to other libraries."""
        owners = self.names.of(node.value)
        for owner in sorted(owners & {"sys.modules", "builtins", "__builtins__"}):
            self._add(node, "dynamic execution", "danger", owner, "replaces a module or a builtin for everybody")
        if isinstance(node, ast.Attribute):
            for owner in sorted(owners):
                if owner.split(".")[0] in ("torch", "os", "sys", "io", "numpy") and owner != "torch.backends":
                    self._grade_change(node, f"{owner}.{node.attr}")

    def _grade_change(self, node: ast.AST, dotted: str) -> None:
        if not dotted.startswith("torch.backends."):
            self._add(node, "dynamic execution", "caution", dotted, "changes a library for everybody in this process")

    def _inspect_call(self, node: ast.Call) -> None:
        functions = self.names.of(node.func)
        names = sorted(self.names.of(node))
        self._inspect_whole_module(node, names)
        for dotted in names:  # getattr(os, "system"), __import__("os"), …
            if not functions & {"globals", "locals", "vars"}:
                self._grade(node, dotted)
        if functions & {"__import__", "importlib.import_module"} and (
            not node.args or constant_text(node.args[0]) is None
        ):
            self._add(
                node, "dynamic execution", "danger", "import by computed name", "imports what the review cannot see"
            )
        self._inspect_call_of_unknown(node, functions)
        if functions & _DYNAMIC_NAMES and len(node.args) >= 2 and constant_text(node.args[1]) is None:
            for owner in sorted(self.names.of(node.args[0])):
                if owner in ("os", "sys", "builtins", "__builtins__", "subprocess", "importlib", "shutil", "socket"):
                    self._add(
                        node, "dynamic execution", "danger", f"{owner}.<computed>", "uses what the review cannot see"
                    )

    def _inspect_call_of_unknown(self, node: ast.Call, functions: set[str]) -> None:
        """What the arguments of a call tell, whatever is called."""
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        remote = keywords.get("trust_remote_code")
        if remote is not None and not (isinstance(remote, ast.Constant) and not remote.value):
            self._add(node, "dynamic execution", "danger", "trust_remote_code", "downloads and runs code")
        named = constant_text(node.args[1]) if functions & _DYNAMIC_NAMES and len(node.args) > 1 else None
        if named in METHODS:
            kind, severity, why = METHODS[named]
            self._add(node, kind, severity, f"….{named}", why)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "open" and not functions:
            modes = [constant_text(value) for value in (*node.args[:2], keywords.get("mode")) if value is not None]
            if any(mode and set(mode) <= _MODES and _WRITE_MODES & set(mode) for mode in modes):
                self._add(node, "file", "danger", "….open", "writes a file")

    def _grade(self, node: ast.AST, dotted: str) -> None:
        rule = rule_for(dotted)
        if rule is None:
            return
        kind, severity, why = rule
        if kind == "network" and severity == "danger" and dotted == "urllib.request":
            severity = "caution"
        call = self._call_of(node)
        if call is not None:
            severity, why = _regrade(dotted, call, severity, why)
        if self._is_bare_module(node, dotted):
            return
        self._add(node, kind, severity, dotted, why)

    def _call_of(self, node: ast.AST) -> ast.Call | None:
        if not hasattr(self, "_calls"):
            self._calls = {id(call.func): call for call in ast.walk(self.tree) if isinstance(call, ast.Call)}
        return self._calls.get(id(node))

    def _is_bare_module(self, node: ast.AST, dotted: str) -> bool:
        """`subprocess` in `subprocess.run`: the attribute is graded, the module name alone is not."""
        return (
            isinstance(node, ast.Name)
            and "." not in dotted
            and dotted not in ("get_ipython",)
            and self._is_module(node)
        )

    def _is_module(self, node: ast.Name) -> bool:
        return node.id in self.names.bound and id(node) not in self.called

    def _add(self, node: ast.AST, kind: str, severity: Severity, call: str, why: str) -> None:
        line = getattr(node, "lineno", 1)
        code = self.lines[line - 1].strip() if line <= len(self.lines) else ""
        finding = Finding(self.file_name, line, severity, kind, call, why, code[:160])
        known = self.found.get((line, call))
        if known is None or known.severity_rank < finding.severity_rank:
            self.found[line, call] = finding


def _arguments(arguments: ast.arguments) -> Sequence[ast.arg]:
    extra = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra]


def _regrade(dotted: str, call: ast.Call, severity: Severity, why: str) -> tuple[Severity, str]:
    """What the arguments of a call tell beyond its name."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if dotted in ("open", "io.open", "codecs.open"):
        mode_node = keywords.get("mode", call.args[1] if len(call.args) > 1 else ast.Constant("r"))
        mode = constant_text(mode_node)
        if mode is None or _WRITE_MODES & set(mode):
            return "danger", "writes a file"
        return "caution", "reads a file"
    if dotted in ("torch.load", "torch.serialization.load") and "weights_only" in keywords:
        safe = isinstance(keywords["weights_only"], ast.Constant) and keywords["weights_only"].value is True
        return ("info", "reads tensors only") if safe else ("danger", "unpickles: a crafted file runs code")
    if dotted == "numpy.load" and "allow_pickle" in keywords:
        return "danger", "unpickles: a crafted file runs code"
    if dotted == "yaml.load" and "SafeLoader" not in ast.unparse(call):
        return "danger", "builds arbitrary objects from a file"
    return severity, why
