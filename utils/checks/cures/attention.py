"""Cures of attention: its scale, its causal mask, and the mask of padding."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from utils.checks.cures.code import (
    Code,
    Function,
    called,
    keyword,
    names_in,
    number,
    of_self,
    parameters,
    receiver,
    subject,
)
from utils.checks.cures.cure import Change, cure
from utils.loading.source_edits import Edit

_PRODUCTS = ("matmul", "bmm", "einsum", "baddbmm")
_TURNED = ("transpose", "mT", "T", "permute", "swapaxes")
_MASKS = ("attention_mask", "attn_mask", "mask", "padding_mask", "pad_mask", "src_mask", "key_padding_mask")
_MODULE_MASKS = {
    "MultiheadAttention": "attn_mask",
    "TransformerEncoderLayer": "src_mask",
    "TransformerEncoder": "mask",
    "TransformerDecoderLayer": "tgt_mask",
    "TransformerDecoder": "tgt_mask",
}
"""What torch's modules call the mask of scores."""
_PADDING_MASKS = {
    "MultiheadAttention": "key_padding_mask",
    "TransformerEncoderLayer": "src_key_padding_mask",
    "TransformerEncoder": "src_key_padding_mask",
    "TransformerDecoderLayer": "memory_key_padding_mask",
    "TransformerDecoder": "memory_key_padding_mask",
}
"""What they call the mask of padding."""
_MASKED = ("causality", "padding invariance", "numerical stability", "gradient flow", "learning", "row independence",
           "shape robustness", "position sensitivity", "initialisation", "gradient accumulation", "attention patterns")  # fmt: skip


# ---- scale ----------------------------------------------------------------------------------------------------------
@cure("scores divided by the root of the head's width", "initialisation", "attention patterns", "gradient flow",
      "numerical stability", "learning", "robustness")  # fmt: skip
def scale(code: Code) -> Iterator[Change]:
    """`q @ k.transpose(-2, -1)` without a factor, and factors that multiply where they should divide."""
    for product, query in _score_products(code):
        if not _is_scaled(code, product):
            yield Change.of(
                "scores divided by the root of the head's width",
                [code.replace(product, f"({code.source(product)}) / {query}.shape[-1] ** 0.5")],
            )
    for operation in code.find(ast.BinOp):
        if isinstance(operation.op, ast.Mult) and _is_root(operation.right):
            new = f"{code.source(operation.left)} / {code.source(operation.right)}"
            yield Change.of("scores divided by the root, not multiplied", [code.replace(operation, new)])
    for call in code.calls("scaled_dot_product_attention"):
        given = keyword(call, "scale")
        if given is not None:
            yield Change.of(
                "the scale of scaled_dot_product_attention left to torch", [code.drop_argument(call, given)]
            )


def _score_products(code: Code) -> Iterator[tuple[ast.expr, str]]:
    """(product of queries and keys, the queries as source)."""
    for operation in code.find(ast.BinOp):
        if isinstance(operation.op, ast.MatMult) and _is_turned(code, operation.right):
            yield operation, code.operand(operation.left)
    for call in code.calls(*_PRODUCTS):
        operands = [*([owner] if (owner := receiver(call)) is not None else []), *call.args]
        if called(call) == "einsum" and len(operands) == 3 and isinstance(operands[0], ast.Constant):
            inputs, _, output = str(operands[0].value).replace(" ", "").partition("->")
            one, _, two = inputs.partition(",")
            if one and two and one[-1] == two[-1] and one[-1] not in output:  # both widths are summed away
                yield call, code.operand(operands[1])
        elif called(call) != "einsum" and len(operands) == 2 and _is_turned(code, operands[1]):
            yield call, code.operand(operands[0])


def _is_turned(code: Code, node: ast.expr) -> bool:
    """Whether an operand is transposed, there or in the statement that bound its name."""
    if isinstance(node, ast.Call):
        return called(node) in _TURNED
    if isinstance(node, ast.Attribute):
        return node.attr in _TURNED
    function = code.function(node)
    if not isinstance(node, ast.Name) or function is None:
        return False
    bound = [a.value for a in code.find(ast.Assign, [function])
             if isinstance(a.targets[0], ast.Name) and a.targets[0].id == node.id and a.lineno < node.lineno]  # fmt: skip
    return bool(bound) and not isinstance(bound[-1], ast.Name) and _is_turned(code, bound[-1])


def _is_scaled(code: Code, product: ast.expr) -> bool:
    parent = code.parent(product)
    return isinstance(parent, ast.BinOp) and isinstance(parent.op, (ast.Div, ast.Mult))


def _is_root(node: ast.expr) -> bool:
    """Whether an expression is a square root: `math.sqrt(d)`, `d ** 0.5`."""
    if isinstance(node, ast.Call):
        return called(node) == "sqrt"
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and number(node.right) == 0.5


# ---- the causal mask ------------------------------------------------------------------------------------------------
@cure("causal mask added", "causality", "learning")
def causal_mask(code: Code) -> Iterator[Change]:
    """A mask before the softmax; `is_causal=True` for torch's attention; `attn_mask=` for its modules."""
    for function in code.forwards:
        edits = [edit for call in code.calls("softmax", functions=[function]) for edit in _masked_softmax(code, call)]
        if edits:
            yield Change.of("scores of later tokens masked before the softmax", edits)
    for call in code.calls("scaled_dot_product_attention"):
        if len(call.args) < 4 and keyword(call, "attn_mask") is None:
            yield Change.of("is_causal=True", [code.argument(call, "is_causal", "True")])
    for call in code.find(ast.Call):
        edit = _masked_module(code, call)
        if edit is not None:
            yield Change.of(f"a causal mask for {code.source(call.func)}", [edit])


def _masked_softmax(code: Code, call: ast.Call) -> list[Edit]:
    scores = subject(call)
    statement = code.statement(call)
    if scores is None:
        return []
    if isinstance(scores, ast.Name):
        return code.before(statement, _mask_statement(scores.id))
    written = code.source(scores)
    if "\n" in written or not code.begins_line(statement):
        return []
    name = "scores"
    return [
        *code.before(statement, f"{name} = {written}", _mask_statement(name)),
        code.replace(scores, name),
    ]


def _mask_statement(scores: str) -> str:
    future = f"{scores}.new_ones({scores}.shape[-2:]).triu(1).bool()"
    return f'{scores} = {scores}.masked_fill({future}, float("-inf"))'


def _masked_module(code: Code, call: ast.Call) -> Edit | None:
    """A causal mask for a call of `nn.MultiheadAttention` or a module of `nn.Transformer`."""
    kind = module_kind(code, call)
    if not kind or not call.args:
        return None
    given = keyword(call, _MODULE_MASKS[kind])
    if given is not None and not (isinstance(given.value, ast.Constant) and given.value.value is None):
        return None
    local = [node for node in ast.walk(call.args[0]) if isinstance(node, ast.Name) and node.id != "self"]
    if not local:
        return None
    x = local[-1].id
    mask = f"{x}.new_ones({x}.shape[1], {x}.shape[1]).triu(1).bool()"
    return code.argument(call, _MODULE_MASKS[kind], mask)


def module_kind(code: Code, call: ast.Call) -> str:
    """The class in `nn` of the module that a call runs, as far as `__init__` tells; empty where it does not.

    Looks through loops: `for layer in self.layers: x = layer(x)`.
    """
    cls, run = code.enclosing(call, ast.ClassDef), call.func
    if isinstance(run, ast.Name):
        loop = code.enclosing(call, ast.For)
        run = loop.iter if loop is not None and run.id in names_in(loop.target) else run
        run = next((node for node in ast.walk(run) if isinstance(node, ast.Attribute) and of_self(node)), run)
    if cls is None or not isinstance(run, ast.Attribute) or not of_self(run):
        return ""
    made = code.made(cls).get(run.attr)
    kinds = [] if made is None else [called(node) for node in ast.walk(made) if isinstance(node, ast.Call)]
    return next((kind for kind in kinds if kind in _MODULE_MASKS), "")


@cure("diagonal of the causal mask", *_MASKED)
def diagonal(code: Code) -> Iterator[Change]:
    """Future begins one past the diagonal: `triu(…, 1)` of what is hidden, `tril(…)` of what is seen."""
    everywhere = [*code.forwards, *code.constructors]
    for call in code.calls("triu", "tril", "triu_", "tril_", functions=everywhere):
        right = 1 if called(call).startswith("triu") else 0
        value = _diagonal_of(call)
        if value is None and right == 1:
            yield Change.of("the mask begins one past the diagonal", [code.add_argument(call, "diagonal=1")])
        elif value is not None and number(value) != right:
            yield Change.of("the mask begins at the right diagonal", [code.replace(value, str(right))])
    strict = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
    for compare in code.find(ast.Compare, everywhere):
        operator = strict.get(type(compare.ops[0]))
        if operator is not None and len(compare.ops) == 1 and _is_grid(code, compare):
            new = f"{code.source(compare.left)} {operator} {code.source(compare.comparators[0])}"
            yield Change.of("the mask ends at the right position", [code.replace(compare, new)])


def _diagonal_of(call: ast.Call) -> ast.expr | None:
    given = keyword(call, "diagonal")
    place = 0 if receiver(call) is not None else 1
    return given.value if given else (call.args[place] if len(call.args) > place else None)


def _is_grid(code: Code, compare: ast.Compare) -> bool:
    """Whether positions are compared with positions: one side has a new axis."""
    text = code.source(compare)
    return "None" in text or "unsqueeze" in text or "newaxis" in text or ".view(" in text


# ---- any mask -------------------------------------------------------------------------------------------------------
@cure("mask the right way round", *_MASKED)
def inversion(code: Code) -> Iterator[Change]:
    """Exchange what is hidden with what is seen: in `masked_fill`, `where`, `key_padding_mask`, and sums of a mask."""
    for call in code.calls("masked_fill", "masked_fill_"):
        mask = (
            call.args[0] if receiver(call) is not None and call.args else (call.args[1] if len(call.args) > 1 else None)
        )
        if mask is not None:
            yield from (Change.of("the mask inverted", [edit]) for edit in inverted(code, mask))
    for call in code.find(ast.Call):
        given = keyword(call, "key_padding_mask", "src_key_padding_mask", "attn_mask", "memory_key_padding_mask")
        if given is not None and not isinstance(given.value, ast.Constant):
            yield from (Change.of(f"{given.arg} inverted", [edit]) for edit in inverted(code, given.value))
    for call in code.calls("where"):
        if len(call.args) == 3:
            _, one, two = call.args
            yield Change.of(
                "the two sides of where exchanged",
                [code.replace(one, code.source(two)), code.replace(two, code.source(one))],
            )
    yield from _triangles(code)
    yield from _signs(code)


def _triangles(code: Code) -> Iterator[Change]:
    """`triu` ↔ `tril`, with the diagonal that the other one wants."""
    for call in code.calls("triu", "tril", functions=[*code.forwards, *code.constructors]):
        name = {"triu": "tril", "tril": "triu"}[called(call)]
        head = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if head:
            func = f"{code.source(call.func).removesuffix(head)}{name}"
            value = _diagonal_of(call)
            edits = [code.replace(call.func, func)]
            if value is not None and name == "tril":
                edits.append(code.replace(value, "0"))
            elif value is None and name == "triu":
                edits.append(code.add_argument(call, "diagonal=1"))
            yield Change.of(f"{name} instead of {head}", edits)


def inverted(code: Code, mask: ast.expr) -> Iterator[Edit]:
    """A mask turned round, in the ways in which its kind of text allows."""
    if isinstance(mask, ast.Compare) and len(mask.ops) == 1:
        operator = {ast.Eq: "!=", ast.NotEq: "==", ast.Lt: ">=", ast.GtE: "<", ast.Gt: "<=", ast.LtE: ">"}.get(
            type(mask.ops[0])
        )
        if operator is not None:
            yield code.replace(mask, f"{code.source(mask.left)} {operator} {code.source(mask.comparators[0])}")
    elif isinstance(mask, ast.UnaryOp) and isinstance(mask.op, (ast.Invert, ast.Not)):
        yield code.replace(mask, code.source(mask.operand))
    else:
        yield code.replace(mask, f"({code.source(mask)}) == 0")
        yield code.replace(mask, f"~({code.source(mask)})")


def _signs(code: Code) -> Iterator[Change]:
    """Sums of a mask: `scores + (1 - mask) * 1e9`, `scores + mask * -1e9`."""
    for operation in code.find(ast.BinOp):
        if not isinstance(operation.op, ast.Mult):
            continue
        for factor, other in ((operation.right, operation.left), (operation.left, operation.right)):
            size = number(factor)
            if size is not None and abs(size) >= 1e3:
                if size > 0:
                    yield Change.of("the mask subtracts", [code.replace(factor, f"{-size!r}")])
                hides = isinstance(other, ast.BinOp) and isinstance(other.op, ast.Sub) and number(other.left) == 1
                text = (
                    code.source(other.right)
                    if hides and isinstance(other, ast.BinOp)
                    else f"(1.0 - {code.source(other)})"
                )
                yield Change.of("the mask inverted", [code.replace(other, text)])
                if size > 0:
                    both = [code.replace(other, text), code.replace(factor, f"{-size!r}")]
                    yield Change.of("the mask inverted, and subtracted", both)


@cure("masked scores far below all others", "padding invariance", "causality", "learning", "row independence",
      "numerical stability", "gradient flow", "initialisation", "gradient accumulation")  # fmt: skip
def fill_value(code: Code) -> Iterator[Change]:
    """`masked_fill(mask, 0)` hides nothing; a row of -inf alone gives NaN."""
    for call in code.calls("masked_fill", "masked_fill_"):
        owner, value = subject(call), call.args[-1] if len(call.args) >= 2 else None
        if owner is None or value is None:
            continue
        size = number(value)
        if size is not None and size > -1e4:
            yield Change.of("masked scores set to -inf", [code.replace(value, 'float("-inf")')])
        elif size is None:
            yield Change.of("masked scores set to a large negative number", [code.replace(value, "-1e4")])
    for call in code.calls("softmax"):
        parent = code.parent(call)
        if not (isinstance(parent, ast.Attribute) and parent.attr == "nan_to_num"):
            place = code.places.end(call)
            yield Change.of("rows in which all is masked give 0", [Edit(place, place, ".nan_to_num(0.0)")])


@cure("mask of padding used", "padding invariance", "gradient accumulation", "learning", "numerical stability")
def padding_mask(code: Code) -> Iterator[Change]:
    """A mask that `forward` takes and drops: handed on to modules that take one, and used on scores or by torch's attention."""
    handed = _handed_on(code)
    if handed:
        yield Change.of("the mask of padding handed on", handed)
    for hidden in ("{0}[:, None, None, :] == 0", "{0} == 0"):
        used = [edit for function in code.forwards for edit in _used_here(code, function, hidden)]
        if used:
            yield Change.of("the mask of padding used", used)
        if handed and used:
            yield Change.of("the mask of padding handed on and used", [*handed, *used])
    for function in code.forwards:
        for name in [n for n in parameters(function) if n in _MASKS or "bias" in n]:
            for call in code.calls("softmax", functions=[function]):
                scores = subject(call)
                if scores is not None and not any(name in names_in(statement) for statement in function.body):
                    edit = code.replace(scores, f"({code.source(scores)} + {name})")
                    yield Change.of(f"{name} added to the scores", [edit])
    for function in code.forwards:
        yield from _like_its_neighbours(code, function)


def _like_its_neighbours(code: Code, function: Function) -> Iterator[Change]:
    """The mask of padding that one of torch's modules is given, given to the others of the function as well."""
    calls = [
        (call, _PADDING_MASKS[kind]) for call in code.find(ast.Call, [function]) if (kind := module_kind(code, call))
    ]
    given = [one.value for call, name in calls if (one := keyword(call, name)) is not None]
    bare = [(call, name) for call, name in calls if keyword(call, name) is None]
    if given and bare:
        edits = [code.argument(call, name, code.source(given[0])) for call, name in bare]
        yield Change.of("the mask of padding given to every module", edits)


def _mask_name(function: Function) -> str | None:
    return next((name for name in parameters(function) if name in _MASKS), None)


def _handed_on(code: Code) -> list[Edit]:
    """The mask as an argument of every call of a module of this file that takes one and is not given it."""
    takers = {cls.name: name for cls in code.classes
              if (forward := code.forward_of(cls)) is not None and (name := _mask_name(forward)) is not None}  # fmt: skip
    edits = []
    for cls in code.classes:
        forward = code.forward_of(cls)
        mask = None if forward is None else _mask_name(forward)
        if forward is None or mask is None:
            continue
        kinds = {
            attribute: {name for name in names_in(value) if name in takers}
            for attribute, value in code.made(cls).items()
        }
        loops = {loop.target.id: kinds.get(loop.iter.attr, set()) for loop in code.find(ast.For, [forward])
                 if isinstance(loop.target, ast.Name) and isinstance(loop.iter, ast.Attribute)}  # fmt: skip
        for call in code.find(ast.Call, [forward]):
            found = (
                kinds.get(call.func.attr, set())
                if isinstance(call.func, ast.Attribute) and of_self(call.func)
                else set()
            )
            found = found or (loops.get(call.func.id, set()) if isinstance(call.func, ast.Name) else set())
            if found and mask not in names_in(call):
                edits.append(code.add_argument(call, f"{takers[min(found)]}={mask}"))
    return edits


def _used_here(code: Code, function: Function, hidden: str) -> list[Edit]:
    """The mask applied to the scores of a function that takes it and does not read it; `hidden` says how it is shaped."""
    mask = _mask_name(function)
    if mask is None or any(mask in names_in(statement) for statement in function.body):
        return []
    edits: list[Edit] = []
    for call in code.calls("softmax", functions=[function]):
        scores, statement = subject(call), code.statement(call)
        if isinstance(scores, ast.Name):
            step = "\t" if "\t" in code.margin(statement) else "    "
            filled = f'{scores.id}.masked_fill({hidden.format(mask)}, float("-inf"))'
            edits += code.before(statement, f"if {mask} is not None:", f"{step}{scores.id} = {filled}")
    for call in code.find(ast.Call, [function]):
        kind = module_kind(code, call)
        if kind:
            edits.append(code.argument(call, _PADDING_MASKS[kind], f"None if {mask} is None else {mask} == 0"))
    return edits


CURES = (scale, diagonal, inversion, causal_mask, fill_value, padding_mask)
