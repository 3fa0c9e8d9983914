"""What is written twice is `await`, and nothing else."""

import ast
import inspect

import pytest

from ollama_provider.api import client, server

#: What is called by another name on the other side.
NAMES = {
    "AsyncClient": "Client",
    "AsyncServer": "Server",
    "AsyncBeginning": "Beginning",
    "ask_together_async": "ask_together",
    "AsyncConnectionPool": "ConnectionPool",
    "AsyncExchange": "Exchange",
    "AsyncRetrying": "Retrying",
    "AsyncBaseTransport": "BaseTransport",
    "AsyncIterator": "Iterator",
    "AsyncGenerator": "Generator",
    "asynccontextmanager": "contextmanager",
    "aclosing": "closing",
    "anext": "next",
    "asyncio": "threading",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
}


class WithoutAwait(ast.NodeTransformer):
    """Turns code with async and await into the code it would be without."""

    def visit(self, node):
        node = self.generic_visit(node)
        match node:
            case ast.AsyncFunctionDef():
                node = ast.FunctionDef(**_fields(node))
            case ast.AsyncWith():
                node = ast.With(**_fields(node))
            case ast.AsyncFor():
                node = ast.For(**_fields(node))
            case ast.Await():
                return node.value
            case ast.comprehension():
                node.is_async = 0
            case ast.Subscript(value=ast.Name(id="Awaitable")):
                return node.slice
            case ast.Subscript(value=ast.Name(id="Generator"), slice=ast.Tuple(elts=[what, _])):
                none = ast.Constant(None)
                node.slice = ast.Tuple(elts=[what, none, none], ctx=ast.Load())
        for field in ("id", "name", "attr"):
            if (old := getattr(node, field, None)) in NAMES:
                setattr(node, field, NAMES[old])
        return node


def _fields(node: ast.AST) -> dict[str, object]:
    return {name: getattr(node, name, None) for name in node._fields}


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:] or [ast.Pass()]
    return tree


def _code(owner: type, change: ast.NodeTransformer | None = None) -> str:
    tree = _without_docstrings(ast.parse(inspect.getsource(owner)))
    return ast.unparse(ast.fix_missing_locations(change.visit(tree) if change else tree))


@pytest.mark.parametrize(
    ("of_coroutines", "of_threads"), [(client.AsyncClient, client.Client), (server.AsyncServer, server.Server)]
)
def test_the_classes_differ_by_async_and_await_alone(of_coroutines, of_threads):
    """The one for coroutines without `async` and `await` is the other, line by line."""
    plain = _code(of_coroutines, WithoutAwait())

    assert plain.splitlines() == _code(of_threads).splitlines()
    assert "await" not in plain
