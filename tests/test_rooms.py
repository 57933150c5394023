"""The rooms of the house: what imports what, read off the sources."""

import ast
from pathlib import Path

from imports import assert_not_loaded

ROOT = Path(__file__).parents[1]
# From the ground up; a file imports from its own floor, or from one below.
FLOORS = (
    ("_src", "losses", "relations", "labels", "sharded", "checks", "errors", "writing", ""),
    ("data", "models", "metrics", "retrieval", "config", "configs", "usage", "hub", "label_sets"),
    ("training", "report"),
    ("forecast", "study"),
    ("train", "aot", "predict", "embed", "export", "estimator"),
)


def modules():
    """{name: path} of the package."""
    found = {}
    for path in sorted((ROOT / "sdjax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path, known):
    """The modules of the package that a file imports, wherever in it; not for types alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sdjax"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def graph():
    known = modules()
    return {name: set(imports(path, known)) - {name} for name, path in known.items()}


def circles(edges):
    """One circle, as a list of names, for each module that lies on one."""
    for start in edges:
        stack, seen = [(start, [start])], set()
        while stack:
            name, path = stack.pop()
            for other in edges.get(name, ()):
                if other == start:
                    yield [*path, other]
                elif other not in seen:
                    seen.add(other)
                    stack.append((other, [*path, other]))


def room(name):
    return [*name.split("."), ""][1]


def test_no_module_imports_itself_by_a_detour():
    assert list(circles(graph())) == []


def test_no_package_imports_itself_by_a_detour():
    def package(name):
        # The files of the ground floor are one package: the public ones and how they do it.
        return "ground" if room(name) in FLOORS[0] else room(name)

    edges = {}
    for name, others in graph().items():
        edges.setdefault(package(name), set()).update(set(map(package, others)) - {package(name)})
    assert list(circles(edges)) == []


def test_files_import_from_their_own_floor_or_from_below():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = [
        (name, other)
        for name, others in graph().items()
        for other in others
        if floor[room(other)] > floor[room(name)]
    ]
    assert wrong == []


def test_a_circle_would_be_found():
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}))
    assert not list(circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}))


def test_importing_the_package_loads_the_ground_floor_alone():
    heavy = ("flax", "optax", "orbax", "grain", "sklearn", "tensorflow", "pandas")
    assert_not_loaded("sdjax", heavy)
