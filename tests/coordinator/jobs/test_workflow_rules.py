"""What may not stand in a module that defines workflows, because a replay would take another turn (jobs rule 3, 4)."""

import ast
from pathlib import Path

import pytest

import coordinator.jobs

FORBIDDEN = {"gather", "wait", "create_task", "now", "time", "monotonic", "random", "uuid4", "token_hex", "sleep"}
FOLDER = Path(coordinator.jobs.__file__).parent


def _workflow_modules() -> list[Path]:
    return [path for path in FOLDER.parent.rglob("*.py") if "DBOS.workflow" in _code(path)]


def _code(path: Path) -> str:
    """Without comments and docstrings."""
    return "\n".join(
        ast.unparse(node)
        for node in ast.parse(path.read_text()).body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    )


def test_only_one_module_defines_workflows_and_only_two_import_the_engine() -> None:
    assert [path.name for path in _workflow_modules()] == ["workflows.py"]
    importing = [
        str(path.relative_to(FOLDER.parent))
        for path in FOLDER.parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and node.module == "dbos")
        or (isinstance(node, ast.Import) and any(name.name == "dbos" for name in node.names))
    ]
    assert sorted(importing) == ["jobs/engine.py", "jobs/workflows.py"]


@pytest.mark.parametrize("module", _workflow_modules(), ids=lambda path: path.name)
def test_workflow_modules_use_nothing_that_differs_on_replay(module: Path) -> None:
    used = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Attribute | ast.Name)
    }
    assert not used & FORBIDDEN


def test_workflows_catch_nothing() -> None:
    tree = ast.parse((FOLDER / "workflows.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
