"""What is shipped: versions that fit together, settings that load, docs that run."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import google.protobuf
import grpc
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_generated_code_runs_on_the_oldest_grpcio_and_protobuf_that_are_allowed():
    built_with = next(r for r in PROJECT["build-system"]["requires"] if r.startswith("grpcio-tools"))
    floor = next(r for r in PROJECT["project"]["dependencies"] if r.startswith("grpcio>="))
    assert re.search(r">=([\d.]+)", floor)[1] == built_with.partition("==")[2]

    generated = (ROOT / "twinsite/api/types/v1/types_pb2.py").read_text()
    gencode = Version(re.search(r"Protobuf Python Version: ([\d.]+)", generated)[1])
    allowed = next(r for r in PROJECT["project"]["dependencies"] if r.startswith("protobuf>="))
    assert Version(re.search(r">=([\d.]+)", allowed)[1]) >= Version(f"{gencode.major}.{gencode.minor}")
    assert Version(google.protobuf.__version__) >= gencode
    assert Version(grpc.__version__) >= Version(built_with.partition("==")[2])


def test_every_program_is_installed_under_its_name():
    scripts = {entry.name for entry in importlib.metadata.distribution("twinsite").entry_points}
    assert {"twinsite", "twinsite-coordinator", "twinsite-provider", "twinsite-host"} <= scripts


def test_every_rpc_says_who_may_call_it():
    for proto in (ROOT / "proto").rglob("*.proto"):
        text = proto.read_text()
        for rpc in re.finditer(r"((?:^\s*//.*\n)+)?^\s*rpc (\w+)", text, re.MULTILINE):
            assert "May be called by:" in (rpc[1] or ""), f"{proto.name}: {rpc[2]}"


def test_changelog_has_an_entry_for_this_version():
    assert f"## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_make_targets_named_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"(?:^|`)make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
