"""The arguments of a `forward`: which there are, their defaults, and the signature of the completed one."""

from __future__ import annotations

import ast
from collections.abc import Collection
from typing import Any

STANDARD_INPUT = "input_ids"
MASK = "attention_mask"


def argument_names(forward: ast.FunctionDef) -> list[str]:
    """Names of the arguments but the first, which is the instance; `*args` and `**kwargs` left out."""
    arguments = forward.args
    return [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]][1:]


def variadic_names(forward: ast.FunctionDef) -> set[str]:
    """Names of `*args` and `**kwargs`."""
    return {argument.arg for argument in (forward.args.vararg, forward.args.kwarg) if argument is not None}


def required_names(forward: ast.FunctionDef) -> list[str]:
    """Names of the arguments without default."""
    arguments = forward.args
    positional = [a.arg for a in [*arguments.posonlyargs, *arguments.args]]
    without = positional[1 : len(positional) - len(arguments.defaults)] if arguments.defaults else positional[1:]
    return without + [a.arg for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults) if default is None]


def argument_texts(forward: ast.FunctionDef) -> list[tuple[str, str]]:
    """(name, text with annotation and default) of each argument but `self`, in order; `*args` and `**kwargs` included."""
    arguments = forward.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = list(zip(positional, defaults))[1:] + list(zip(arguments.kwonlyargs, arguments.kw_defaults))
    texts = []
    for argument, default in pairs:
        annotation = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
        equals = " = " if annotation else "="
        value = f"{equals}{ast.unparse(default)}" if default is not None else ""
        texts.append((argument.arg, argument.arg + annotation + value))
    if arguments.vararg:
        texts.append((arguments.vararg.arg, f"*{arguments.vararg.arg}"))
    if arguments.kwarg:
        texts.append((arguments.kwarg.arg, f"**{arguments.kwarg.arg}"))
    return texts


def defaults_of(forward: ast.FunctionDef) -> dict[str, Any]:
    """Defaults of the arguments that are plain constants; others count as None, which is what the probe passes."""
    arguments = forward.args
    positional = [*arguments.posonlyargs, *arguments.args]
    found: dict[str, Any] = {}
    pairs = [*zip(positional[::-1], arguments.defaults[::-1]), *zip(arguments.kwonlyargs, arguments.kw_defaults)]
    for argument, default in pairs:
        if default is not None:
            found[argument.arg] = default.value if isinstance(default, ast.Constant) else _literal(default)
    if arguments.vararg:
        found[arguments.vararg.arg] = ()
    if arguments.kwarg:
        found[arguments.kwarg.arg] = {}
    return found


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return None


def signature_text(forward: ast.FunctionDef, input_name: str, left_out: Collection[str], width: int = 112) -> list[str]:
    """Lines of `def forward(self, input_ids, attention_mask=None, …):`; one argument per line where it would be longer."""
    arguments = forward.args
    everything = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    annotation = next((a.annotation for a in everything if a.arg == input_name and a.annotation), None)
    first = STANDARD_INPUT + (f": {ast.unparse(annotation)}" if annotation else "")
    others = [text for name, text in argument_texts(forward) if name not in (*left_out, input_name, MASK)]
    required = [text for text in others if "=" not in text and not text.startswith("*")]
    optional = [text for text in others if text not in required and not text.startswith("**")]
    variadic = any(text.startswith("*") for text in optional)
    keyword_only = ["*", *required] if required and not variadic else required
    parts = ["self", first, f"{MASK}=None", *optional, *keyword_only, *(o for o in others if o.startswith("**"))]
    returns = f" -> {ast.unparse(forward.returns)}" if forward.returns else ""
    line = f"def {forward.name}({', '.join(parts)}){returns}:"
    if len(line) <= width:
        return [line]
    return [f"def {forward.name}(", *(f"    {part}," for part in parts), f"){returns}:"]
