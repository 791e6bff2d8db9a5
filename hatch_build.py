"""Compiles proto/ into twinsite/api/ for wheels and editable installs; the path below proto/ is the import path."""

import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent


def compile_protos(root: Path = ROOT) -> None:
    """Write *_pb2.py, their gRPC twins and both stubs. Raises RuntimeError with protoc's exit status."""
    from grpc_tools import protoc

    sources = sorted(str(path.relative_to(root / "proto")) for path in (root / "proto").rglob("*.proto"))
    out = root / "twinsite" / "api"
    shutil.rmtree(out, ignore_errors=True)
    include = resources.files("grpc_tools") / "_proto"
    scripts = Path(sys.executable).parent
    plugins = []
    for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc"):
        found = shutil.which(name, path=str(scripts)) or shutil.which(name)
        if found is None:
            raise RuntimeError(f"{name} is not installed; pip install mypy-protobuf")
        plugins.append(f"--plugin={name}={found}")
    arguments = [
        "protoc",
        f"-I{root / 'proto'}",
        f"-I{include}",
        *plugins,
        f"--python_out={root}",
        f"--grpc_python_out={root}",
        f"--mypy_out=quiet:{root}",
        f"--mypy_grpc_out=quiet:{root}",
        *sources,
    ]
    if status := protoc.main(arguments):
        raise RuntimeError(f"protoc ended with status {status}")
    for folder in {out, *(path.parent for path in out.rglob("*.py")), *(p for p in out.rglob("*") if p.is_dir())}:
        (folder / "__init__.py").write_text('"""Generated from proto/ by hatch_build.py; do not edit."""\n')


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand: `python hatch_build.py`
    pass
else:

    class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own generic is internal
        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            del version, build_data
            compile_protos(Path(self.root))


if __name__ == "__main__":
    compile_protos()
