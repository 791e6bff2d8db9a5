import ast
from pathlib import Path

import hyperv_host_agent.replication

PURE = {"bisect", "collections", "collections.abc", "dataclasses", "enum", "math", "json", "typing"}
OURS = {"twinsite.digest", "twinsite.errors", "twinsite.extents"}
CORE = "hyperv_host_agent.replication"


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_the_core_imports_nothing_that_reads_a_clock_a_file_or_chance():
    modules = list(Path(hyperv_host_agent.replication.__file__).parent.glob("*.py"))
    assert modules
    foreign = {
        (module.name, name)
        for module in modules
        for name in imports(ast.parse(module.read_text()))
        if name not in PURE | OURS and not name.startswith(CORE)
    }
    assert foreign == set()


def test_the_core_never_waits():
    for module in Path(hyperv_host_agent.replication.__file__).parent.glob("*.py"):
        tree = ast.parse(module.read_text())
        assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree)), module
