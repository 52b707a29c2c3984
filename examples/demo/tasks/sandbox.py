"""Runs an answer's code apart from everything: only a small part of Python, few builtins, bounded time and memory."""

from __future__ import annotations

# The program of the separate process. It reads {"name", "samples", "answer", "right"} and prints "same" or "different".
RUNNER = r"""
import ast, json, resource, sys

ALLOWED = (
    ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Expr, ast.Assign, ast.If, ast.For, ast.IfExp,
    ast.Name, ast.Load, ast.Store, ast.Constant, ast.Call, ast.keyword, ast.Attribute, ast.Subscript, ast.Slice,
    ast.List, ast.Tuple, ast.ListComp, ast.GeneratorExp, ast.comprehension, ast.Compare, ast.cmpop, ast.BoolOp,
    ast.boolop, ast.UnaryOp, ast.unaryop, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Mod, ast.FloorDiv, ast.Div,
)
BUILTINS = {f.__name__: f for f in (sum, max, min, len, sorted, abs, list, reversed, str, int, range, bool)}
METHODS = {"upper", "lower", "count", "replace", "startswith", "endswith", "split", "join", "append", "strip"}

def load(source, name):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ALLOWED):
            raise ValueError(type(node).__name__)
        if isinstance(node, ast.Attribute) and node.attr not in METHODS:
            raise ValueError(node.attr)
        if isinstance(node, ast.Name) and node.id.startswith("__"):
            raise ValueError(node.id)
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        raise ValueError("not one function")
    space = {"__builtins__": BUILTINS}
    exec(compile(tree, "answer", "exec"), space)
    return space[name]

def result(function, sample):
    try:
        value = function(json.loads(sample))
    except Exception as error:
        return type(error).__name__
    return type(value).__name__, value

job = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
resource.setrlimit(resource.RLIMIT_CPU, (3, 3))
try:
    answer = load(job["answer"], job["name"])
except Exception:
    print("different")
    sys.exit()
right = load(job["right"], job["name"])
samples = [json.dumps(sample) for sample in job["samples"]]
print("same" if all(result(answer, s) == result(right, s) for s in samples) else "different")
"""
