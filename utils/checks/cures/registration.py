"""Cures of what a module does not own as it should: buffers, lists, modules made in `forward`, tied and unused weights."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from utils.checks.cures.code import Code, Function, attributes_in, called, keyword, names_in, of_self, root
from utils.checks.cures.cure import Change, cure
from utils.loading.source_edits import Edit

_KEPT = ("save and load", "gradient flow", "learning", "determinism", "numerical stability", "export dry run", "memory",
         "shape robustness", "initialisation")  # fmt: skip


@cure("tensor registered as a buffer", *_KEPT)
def buffers(code: Code) -> Iterator[Change]:
    """`self.table = torch.…` in `__init__` → `self.register_buffer("table", …)`, or a parameter where it wants gradients."""
    every: list[Edit] = []
    for constructor in code.constructors:
        tensors = {a.targets[0].id for a in code.find(ast.Assign, [constructor])
                   if isinstance(a.targets[0], ast.Name) and _is_tensor(a.value)}  # fmt: skip
        for assignment in code.find(ast.Assign, [constructor]):
            target, value = assignment.targets[0], assignment.value
            if not isinstance(target, ast.Attribute) or not of_self(target):
                continue
            if not (_is_tensor(value) or (isinstance(value, ast.Name) and value.id in tensors)):
                continue
            learns = isinstance(value, ast.Call) and keyword(value, "requires_grad")
            registered = f'self.register_buffer("{target.attr}", {code.source(value)})'
            if learns:
                yield Change.of(
                    f"{target.attr} is a parameter", [code.replace(value, f"nn.Parameter({code.source(value)})")]
                )
                continue
            edit = code.replace(assignment, registered)
            every.append(edit)
            yield Change.of(f"{target.attr} registered as a buffer", [edit])
            if any(one.attr.startswith("rand") for one in ast.walk(value) if isinstance(one, ast.Attribute)):
                parameter = code.replace(value, f"nn.Parameter({code.source(value)})")
                yield Change.of(f"{target.attr} is a parameter", [parameter])
        for call in code.calls("register_buffer", functions=[constructor]):
            given = keyword(call, "persistent")
            if given is not None and isinstance(given.value, ast.Constant) and given.value.value is False:
                yield Change.of("the buffer is saved with the weights", [code.drop_argument(call, given)])
    if len(every) > 1:
        yield Change.of("tensors registered as buffers", every)


def _is_tensor(value: ast.expr) -> bool:
    """Whether an expression makes a tensor with functions of torch, and no module, parameter, device or type."""
    calls = [node for node in ast.walk(value) if isinstance(node, ast.Call)]
    if not isinstance(value, (ast.Call, ast.BinOp, ast.Subscript, ast.UnaryOp)) or not calls:
        return False
    heads = [node.func for node in calls if isinstance(node.func, ast.Attribute)]
    owned = [node for node in heads if isinstance(node.value, ast.Name) and node.value.id == "torch"]
    modules = [
        node for node in calls if root(node.func) == "nn" or called(node) in ("Parameter", "Generator", "device")
    ]
    first: ast.expr = value
    while isinstance(first, (ast.Call, ast.Attribute, ast.Subscript)):
        first = first.func if isinstance(first, ast.Call) else first.value
    foreign = isinstance(first, ast.Name) and first.id not in ("torch",) and not isinstance(value, ast.BinOp)
    return bool(owned) and not modules and not foreign


@cure("modules kept where their weights are seen", *_KEPT)
def containers(code: Code) -> Iterator[Change]:
    """A list, tuple or dict of modules → `nn.ModuleList` or `nn.ModuleDict`; of parameters → `nn.ParameterList`."""
    own = {cls.name for cls in code.classes}
    for cls in code.classes:
        constructor = code.constructor_of(cls)
        if constructor is None:
            continue
        plain = [(a.targets[0], a.value) for a in code.find(ast.Assign, [constructor])]
        typed = [(a.target, a.value) for a in code.find(ast.AnnAssign, [constructor])]
        for target, value in (*plain, *typed):
            if not isinstance(target, ast.Attribute) or not of_self(target) or value is None:
                continue
            inner = _inner_container(value)
            if inner is None:
                continue
            held: ast.AST = inner
            if not any(isinstance(node, ast.Call) for node in ast.walk(inner)):
                held = ast.Tuple([c for c in code.calls("append", functions=[constructor])
                                  if target.attr in attributes_in(c)], ast.Load())  # fmt: skip
            kinds = [node for node in ast.walk(held) if isinstance(node, ast.Call)]
            parameters = any(called(node) == "Parameter" for node in kinds)
            modules = any(root(node.func) == "nn" or called(node) in own for node in kinds)
            if not parameters and not modules:
                continue
            kind = ("Parameter" if parameters else "Module") + (
                "Dict" if isinstance(inner, (ast.Dict, ast.DictComp)) else "List"
            )
            wrapped = code.replace(value, f"nn.{kind}({code.source(inner)})")
            edit = code.replace(value.func, f"nn.{kind}") if isinstance(value, ast.Call) else wrapped
            yield Change.of(f"{target.attr} is an nn.{kind}", [edit])


def _inner_container(value: ast.expr) -> ast.expr | None:
    """The list, tuple or dict that an expression is, also inside `tuple(…)` or `list(…)`."""
    if isinstance(value, ast.Call) and called(value) in ("list", "tuple") and len(value.args) == 1:
        return value.args[0]
    kinds = (ast.List, ast.Tuple, ast.Dict, ast.ListComp, ast.DictComp)
    return value if isinstance(value, kinds) else None


@cure(
    "module made once",
    "determinism",
    *_KEPT[:1],
    "gradient flow",
    "learning",
    "row independence",
    "numerical stability",
)
def made_in_forward(code: Code) -> Iterator[Change]:
    """`nn.Linear(…)(x)` in `forward` → made in `__init__`, called in `forward`; likewise parameters."""
    for cls in code.classes:
        constructor, forward = code.constructor_of(cls), code.forward_of(cls)
        if constructor is None or forward is None:
            continue
        taken = set(code.made(cls))
        for call in code.find(ast.Call, [forward]):
            if root(call.func) != "nn" or called(call)[:1].islower() or not called(call):
                continue
            name = next(n for n in (f"{called(call).lower()}{i or ''}" for i in range(100)) if n not in taken)
            for text in _in_constructor(code, call, constructor):
                edits = [*code.after(constructor.body[-1], f"self.{name} = {text}"), code.replace(call, f"self.{name}")]
                yield Change.of(f"nn.{called(call)} made once, in __init__", edits)


def _in_constructor(code: Code, call: ast.Call, constructor: Function) -> Iterator[str]:
    """The call as it may stand in `__init__`; sizes of a tensor become each whole-number argument of `__init__` in turn."""
    known = {argument.arg for argument in constructor.args.args}
    local = names_in(call) - {"nn", "torch"} - known
    if not local:
        yield code.source(call)
        return
    sizes = [
        a
        for a in call.args
        if isinstance(a, (ast.Subscript, ast.Call)) and re.search(r"\.(shape\[|size\()", code.source(a))
    ]
    if any(names_in(a) - {"nn", "torch", "self"} and a not in sizes for a in call.args):
        return
    cls = code.enclosing(constructor, ast.ClassDef)
    layers = (
        []
        if cls is None
        else [
            v
            for v in code.made(cls).values()
            if isinstance(v, ast.Call) and called(v) in ("Embedding", "LayerNorm", "Linear")
        ]
    )
    widths = [code.source(v.args[-1]) for v in layers if v.args]
    for width in dict.fromkeys([*widths, *sorted(known - {"self"})]):
        text = code.source(call)
        for size in sizes:
            text = text.replace(code.source(size), width)
        yield text


@cure("head tied to the embedding", "save and load", "initialisation", "memory", "learning", asked="tie")
def tied_head(code: Code) -> Iterator[Change]:
    """`self.head.weight = self.embedding.weight` at the end of `__init__`."""
    for cls in code.classes:
        constructor, made = code.constructor_of(cls), code.made(cls)
        tables = [n for n, v in made.items() if isinstance(v, ast.Call) and called(v) == "Embedding" and "pos" not in n]
        heads = [n for n, v in made.items() if isinstance(v, ast.Call) and called(v) == "Linear"]
        if constructor is None or not tables or not heads:
            continue
        head, table = heads[-1], tables[0]
        line = f"self.{head}.weight = self.{table}.weight"
        if line not in code.text:
            edits = code.after(constructor.body[-1], line)
            yield Change.of("the head shares the weight of the embedding", edits)


@cure("weights that are never used are used", "gradient flow", "position sensitivity", "initialisation", "memory",
      "dead neurons", "numerical stability", "learning", "causality")  # fmt: skip
def unused(code: Code) -> Iterator[Change]:
    """A module that `__init__` makes and nothing calls: called where its kind of module is, and loops over all layers."""
    for cls in code.classes:
        constructor, forward = code.constructor_of(cls), code.forward_of(cls)
        if constructor is None or forward is None:
            continue
        for loop in code.find(ast.For, [forward]):
            if (
                isinstance(loop.iter, ast.Subscript)
                and isinstance(loop.iter.slice, ast.Slice)
                and of_self(loop.iter.value)
            ):
                yield Change.of(
                    "the loop runs over all layers", [code.replace(loop.iter, code.source(loop.iter.value))]
                )
        outside = [node for node in cls.body if node is not constructor]
        used: set[str] = {name for node in outside for name in attributes_in(node)}
        for name, value in code.made(cls).items():
            if (
                name not in used
                and isinstance(value, ast.Call)
                and (root(value.func) == "nn" or called(value)[:1].isupper())
            ):
                yield from _places(code, forward, name, called(value))


def _places(code: Code, forward: Function, name: str, kind: str) -> Iterator[Change]:
    """Where an unused module may have been meant to be called, the likeliest first."""
    if kind == "Embedding":
        yield from _position_places(code, forward, name)
    calls = [call for call in code.find(ast.Call, [forward]) if of_self(call.func) and call.args]
    yield from _gates(code, name, calls)
    stem = re.sub(r"\d+$", "", name)
    siblings = [
        call
        for call in calls
        if isinstance(call.func, ast.Attribute) and re.sub(r"\d+$", "", call.func.attr) == stem and stem != name
    ]
    for call in siblings[::-1]:
        statement = code.statement(call)
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and isinstance(call.func, ast.Attribute)
        ):
            line = code.source(statement).replace(f"self.{call.func.attr}", f"self.{name}")
            if "\n" not in line:
                yield Change.of(f"{name} called after {call.func.attr}", code.after(statement, line))
    if "Embedding" in kind:
        return
    for call in calls[::-1]:
        argument = call.args[0]
        edit = code.replace(argument, f"self.{name}({code.source(argument)})")
        words = f"{name} called before {code.source(call.func)}"
        if "Norm" in kind and len(call.args) > 1 and len({code.source(a) for a in call.args}) == 1:
            edits = [code.replace(a, f"self.{name}({code.source(a)})") for a in call.args]
            yield Change.of(words, edits)
        else:
            yield Change.of(words, [edit])
    returned = next((node for node in code.find(ast.Return, [forward]) if node.value is not None), None)
    x = next((argument.arg for argument in forward.args.args[1:2]), None)
    if returned is not None and returned.value is not None and x is not None:
        value = code.source(returned.value)
        if isinstance(returned.value, ast.Name):
            yield Change.of(
                f"{name} called before the result is returned",
                [code.replace(returned.value, f"{value} + self.{name}({value})")],
            )
            yield Change.of(
                f"{name} called before the result is returned", [code.replace(returned.value, f"self.{name}({value})")]
            )


def _gates(code: Code, name: str, calls: list[ast.Call]) -> Iterator[Change]:
    """`F.silu(self.up(x))` with an unused twin of `up` → `F.silu(self.gate(x)) * self.up(x)`, as gated layers do."""
    cls = code.enclosing(calls[0], ast.ClassDef) if calls else None
    made = {} if cls is None else {n: code.source(v) for n, v in code.made(cls).items()}
    for call in calls:
        outer, used = code.parent(call), call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if isinstance(outer, ast.Call) and outer.args == [call] and made.get(used) == made.get(name):
            x = ", ".join(map(code.source, call.args))
            new = f"{code.source(outer.func)}(self.{name}({x})) * self.{used}({x})"
            yield Change.of(f"{used} gated by {name}", [code.replace(outer, new)])


def _position_places(code: Code, forward: Function, name: str) -> Iterator[Change]:
    x = next((argument.arg for argument in forward.args.args[1:2]), None)
    for call in code.find(ast.Call, [forward]):
        if x is not None and of_self(call.func) and len(call.args) == 1 and code.source(call.args[0]) == x:
            table = f"self.{name}(torch.arange({x}.shape[1], device={x}.device))"
            yield Change.of(f"{name} added to the embedding", [code.replace(call, f"({code.source(call)} + {table})")])


CURES = (containers, buffers, made_in_forward, unused, tied_head)
