"""Rules for our own source that no linter has: what each finds in a module's syntax tree."""

import ast
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
REPO = Path(__file__).resolve().parents[2]
ROOTS = ("src/tokensieve", "lab")
ASKS = ("from_pretrained", "from_config")  # where Transformers may ask to run a checkpoint's code
HANDED = ("mismatched_keys", "missing_keys", "unexpected_keys")  # sets from Transformers
ORDERED = ("list", "tuple", "iter", "enumerate", "join", "str", "print", "array")
UNORDERED = ("sorted", "set", "frozenset", "len", "sum", "min", "max", "any", "all", "bool")
LONGEST_FILE = 300  # lines
LONGEST_FUNCTION = 60  # lines, its docstring among them
MOST_ARGUMENTS = 7  # besides self and cls; `*rest` and `**rest` are one each
EXEMPT = {  # what may break which rule, and why; a line that excuses nothing is an error
    ("many_arguments", "src/tokensieve/hf/sieve.py:sieve"): "front door: its keywords are its API",
    ("many_arguments", "src/tokensieve/hf/compress.py:compress"): "front door, as `sieve`",
    ("many_arguments", "src/tokensieve/hf/fused/build.py:fuse"): "front door of fused models",
    ("many_arguments", "src/tokensieve/hf/fused/processor.py:__init__"): (
        "Transformers saves and loads a processor by the names in its signature"
    ),
}
COMMANDS = "src/tokensieve/cli/"  # the arguments of a verb are the options that Typer offers


def modules() -> list[Path]:
    return sorted(path for root in ROOTS for path in (REPO / root).rglob("*.py"))


def named(path: Path) -> str:
    """A module as these rules name it."""
    return path.relative_to(REPO).as_posix()


def long_functions(tree: ast.Module) -> Iterator[Function]:
    """Functions that do not fit on a screen."""
    for node in _functions(tree):
        if (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION:
            yield node


def long_verbs(tree: ast.Module) -> Iterator[Function]:
    """The same for verbs of the command line, whose signature is the list of their options."""
    for node in _functions(tree):
        if (node.end_lineno or 0) - node.body[0].lineno >= LONGEST_FUNCTION:
            yield node


def many_arguments(tree: ast.Module) -> Iterator[Function]:
    """Functions whose arguments want to be grouped by what they mean."""
    for node in _functions(tree):
        a = node.args
        every = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
        names = {one.arg for one in every if one is not None} - {"self", "cls"}
        if len(names) > MOST_ARGUMENTS:
            yield node


def is_long(text: str) -> bool:
    """Whether a file is one to split."""
    return len(text.splitlines()) > LONGEST_FILE


def _functions(tree: ast.Module) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def asks_for_trust(tree: ast.Module) -> Iterator[ast.AST]:
    """Loading by Transformers that does not spell out `trust_remote_code=False`.

    Classes of tokensieve.nn load tensors and JSON alone, and take no such argument.
    """
    own = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokensieve.nn")
        for alias in node.names
    }
    said = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = {k.arg: k.value for k in node.keywords}
            value = given.get("trust_remote_code")
            if isinstance(value, ast.Constant) and value.value is False:
                said.add(node.func)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr not in ASKS or node in said:
            continue
        if not (isinstance(node.value, ast.Name) and node.value.id in own):
            yield node


def in_set_order(tree: ast.Module) -> Iterator[ast.AST]:
    """What takes the items of a set in the order that hashing gives them.

    Follows names within a function: those assigned a set, annotated as one, or the sets that
    Transformers hands over.
    """
    scopes = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Module)]
    for scope in scopes:
        names = _set_names(scope)
        free = {
            part
            for node in _own_nodes(scope)
            if isinstance(node, ast.Call) and _called(node) in UNORDERED
            for part in node.args
        }
        into_sets = {
            item for node in _own_nodes(scope) if isinstance(node, ast.Set) for item in node.elts
        }
        for node in _own_nodes(scope):
            if node in free or node in into_sets:
                continue
            if any(_is_set(part, names) for part in _in_order(node)):
                yield node


def _in_order(node: ast.AST) -> list[ast.AST]:
    """What a node takes the items of, in the order in which they come."""
    if isinstance(node, ast.For):
        return [node.iter]
    if isinstance(node, ast.ListComp | ast.DictComp | ast.GeneratorExp):
        return [generator.iter for generator in node.generators]
    if isinstance(node, ast.FormattedValue | ast.Starred):
        return [node.value]
    return list(node.args) if isinstance(node, ast.Call) and _called(node) in ORDERED else []


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a scope, without those of functions within it."""
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)


def _called(node: ast.Call) -> str:
    """The name that is called, without what it belongs to."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _set_names(scope: ast.AST) -> set[str]:
    names: set[str] = set()
    if isinstance(scope, ast.FunctionDef):
        every = [*scope.args.posonlyargs, *scope.args.args, *scope.args.kwonlyargs]
        names |= {a.arg for a in every if a.annotation and _says_set(a.annotation)}
    for node in sorted(_own_nodes(scope), key=lambda n: getattr(n, "lineno", 0)):
        if isinstance(node, ast.Assign) and _is_set(node.value, names):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        if isinstance(node, ast.AnnAssign) and _says_set(node.annotation):
            names |= {node.target.id} if isinstance(node.target, ast.Name) else set()
        if isinstance(node, ast.NamedExpr) and _is_set(node.value, names):
            names.add(node.target.id)
    return names


def _says_set(annotation: ast.AST) -> bool:
    return ast.unparse(annotation).startswith(("set[", "frozenset[", "Set[", "AbstractSet["))


def _is_set(node: ast.AST, names: set[str]) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Call):
        return _called(node) in ("set", "frozenset")
    if isinstance(node, ast.BoolOp):
        return any(_is_set(part, names) for part in node.values)
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value in HANDED
    if isinstance(node, ast.BinOp) and isinstance(
        node.op, ast.BitAnd | ast.BitOr | ast.BitXor | ast.Sub
    ):
        return any(_is_set(part, names) or _keys(part) for part in (node.left, node.right))
    return False


def _keys(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _called(node) == "keys"
