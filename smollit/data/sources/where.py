"""Expressions over the columns of a row, as `score > 3 and lang in ["en", "de"]`, without Python's eval.

Names are columns; `meta.lang` is a key inside one, and `row["helpfulness score"]` a column whose name is no word. There
are comparisons, `in`, `and`, `or`, `not`, arithmetic, indexing, and the functions in `FUNCTIONS`. Nothing else is run.
"""

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from smollit.data.sources.columns import value_at
from smollit.data.sources.files import Row

Evaluate = Callable[[Row], Any]
CONSTANTS = {"true": True, "false": False, "null": None}
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.USub: operator.neg,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: operator.eq, ast.IsNot: operator.ne,
    ast.In: lambda item, group: item in group, ast.NotIn: lambda item, group: item not in group,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "all": all, "any": any, "bool": bool, "endswith": str.endswith, "float": float, "int": int, "len": len,
    "lower": str.lower, "max": max, "min": min, "round": round, "startswith": str.startswith, "str": str,
    "strip": str.strip, "sum": sum,
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """An expression over the columns of a row.

    A value that is null is neither above nor below another, nor in a list: such a comparison is false.

    Args:
        text: The expression.
        setting: The setting that it comes from, for errors.
    """

    text: str
    setting: str = "data.where"

    def __post_init__(self) -> None:
        _compiled(self.text, self.setting)

    @property
    def names(self) -> set[str]:
        """The columns, or the paths of columns, that it reads."""
        tree = ast.parse(self.text.strip(), mode="eval")
        functions = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
        found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in functions}
        for node in ast.walk(tree):
            match node:
                case ast.Subscript(value=ast.Name(id="row"), slice=ast.Constant(value=str() as path)):
                    found.add(path)
        return found - CONSTANTS.keys() - {"row"}

    def __call__(self, row: Row) -> Any:
        """The value for a row.

        Raises:
            ValueError: If it can't be computed, with the cause and the row.
        """
        try:
            return _compiled(self.text, self.setting)(row)
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise ValueError(
                f"`{self.setting}: {self.text}` can't be computed ({error}) for the row {row!r:.200}. Texts of numbers"
                " become numbers with float(...)"
            ) from error

    def holds(self, row: Row) -> bool:
        """Whether the expression is true for a row.

        Raises:
            ValueError: If it gives a text, of which only an empty one would be false.
        """
        value = self(row)
        if isinstance(value, str):
            raise ValueError(
                f"`{self.setting}: {self.text}` gives the text {value!r:.40}, which is neither true nor false: compare"
                f' it, as in {self.text} == "true"'
            )
        return bool(value)


@lru_cache
def _compiled(text: str, setting: str) -> Evaluate:
    try:
        return _compile(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        cause = error.msg if isinstance(error, SyntaxError) else "it nests too deeply"
        raise ValueError(
            f"`{setting}` is {text!r}, and that is no expression over columns ({cause}). Write, for example,"
            ' score > 3 and lang == "en"'
        ) from error


def _compile(node: ast.expr) -> Evaluate:
    match node:
        case ast.Constant(value=value):
            return lambda row: value
        case ast.Name(id=name) if name in CONSTANTS:
            constant = CONSTANTS[name]
            return lambda row: row.get(name, constant)
        case ast.Name() | ast.Attribute():
            return _compile_path(node)
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            values = [_compile(item) for item in items]
            return lambda row: [value(row) for value in values]
        case ast.BoolOp(op=joined, values=operands):
            parts = [_compile(operand) for operand in operands]
            both = all if isinstance(joined, ast.And) else any
            return lambda row: both(part(row) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _compile(operand)
            return lambda row: not inner(row)
        case _:
            return _compile_computed(node)


def _compile_computed(node: ast.expr) -> Evaluate:
    """Arithmetic, comparisons, functions and indices: what needs values."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _apply(operator.neg, [_compile(operand)])
        case ast.BinOp(op=op, left=left, right=right) if type(op) in OPERATORS:
            return _apply(OPERATORS[type(op)], [_compile(left), _compile(right)])
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in OPERATORS for op in ops):
            values = [_compile(left), *map(_compile, others)]
            tests = [_apply(OPERATORS[type(op)], values[n : n + 2], on_null=False) for n, op in enumerate(ops)]
            return lambda row: all(test(row) for test in tests)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return _apply(FUNCTIONS[name], [_compile(argument) for argument in arguments])
        case ast.Subscript(value=ast.Name(id="row"), slice=ast.Constant(value=str() as column)):
            return lambda row: value_at(row, column)
        case ast.Subscript(value=value, slice=index):
            return _apply(lambda group, key: group.get(key) if isinstance(group, dict) else group[key],
                          [_compile(value), _compile(index)])  # fmt: skip
        case _:
            raise SyntaxError(f"{ast.unparse(node)!r} is not allowed")


def _apply(function: Callable[..., Any], values: list[Evaluate], *, on_null: bool | None = None) -> Evaluate:
    """The function of these values; where one is null, `on_null`, except that null is equal to null."""
    is_equality = function in (operator.eq, operator.ne)

    def evaluate(row: Row) -> Any:
        found = [value(row) for value in values]
        if not is_equality and any(value is None for value in found):
            return on_null
        return function(*found)

    return evaluate


def _compile_path(node: ast.expr) -> Evaluate:
    """A column, or a key inside one: `meta.lang`."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise SyntaxError("a dot must follow the name of a column")
    path = ".".join([node.id, *names])
    return lambda row: value_at(row, path)
