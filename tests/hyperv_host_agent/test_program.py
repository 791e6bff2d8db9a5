"""`twinsite-host` from outside: exit statuses, what it says, and how it ends."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench.rig import Rig

PROGRAM = Path(sys.executable).with_name("twinsite-host")


def run(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROGRAM), "--config", str(config), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    made.join()
    return made


def test_it_serves_until_sigterm_and_leaves_no_trace_of_running(rig: Rig) -> None:
    config = rig.folder("b") / "host.toml"
    agent = rig.start("b")
    told = json.loads((rig.folder("b") / "state" / "run" / "ready.json").read_bytes())
    assert told["pid"] == agent.process.pid
    assert told["addresses"] == {"replication": f"127.0.0.1:{rig.ports['b']}"}
    shown = run(config, "status", "-o", "json")
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["running"] is True
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(10) == 0
    assert not (rig.folder("b") / "state" / "run" / "ready.json").exists()
    assert run(config, "status").returncode == 9


def test_a_port_in_use_is_said_with_what_to_do(rig: Rig) -> None:
    config = rig.folder("b") / "host.toml"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", rig.ports["b"]))
        taken.listen()
        served = run(config, "serve")
        checked = run(config, "check", "-o", "json", "--exit-code")
    assert served.returncode == 6
    assert f"127.0.0.1:{rig.ports['b']}" in served.stderr
    assert "another port" in served.stderr
    assert checked.returncode == 11
    port = next(one for one in json.loads(checked.stdout) if one["what"] == "port")
    assert port["verdict"] == "critical"


def test_check_is_content_with_a_joined_host_and_warns_of_a_provider_that_is_away(rig: Rig) -> None:
    config = rig.folder("b") / "host.toml"
    before = sorted(rig.folder("b").rglob("*"))
    checked = run(config, "check", "-o", "json", "--exit-code")
    findings = {one["what"]: one["verdict"] for one in json.loads(checked.stdout)}
    assert findings.pop("provider") == "warning"
    assert set(findings.values()) == {"ok"}
    assert checked.returncode == 10
    assert run(config, "check").returncode == 0
    made = {path.name for path in set(rig.folder("b").rglob("*")) - set(before)}
    assert made <= {"store", "vms"}


def test_check_names_an_unwritable_store_and_a_missing_join_file(tmp_path: Path) -> None:
    config = tmp_path / "host.toml"
    (tmp_path / "file").write_text("")
    config.write_text(
        f'state = "{tmp_path}/state"\nstore = "{tmp_path}/file/store"\nvms = "{tmp_path}/vms"\n'
        f'join_file = "{tmp_path}/none.json"\nlisten = "127.0.0.1:0"\n'
    )
    checked = run(config, "check", "-o", "json")
    findings = {one["what"]: one for one in json.loads(checked.stdout)}
    assert checked.returncode == 1
    assert findings["replica store"]["verdict"] == "critical"
    assert "host-key create" in findings["identity"]["next_step"]
    assert run(config, "status").returncode == 6
    served = run(config, "serve")
    assert served.returncode == 2
    assert "none.json" in served.stderr


def test_sigterm_ends_it_while_it_waits_to_join(rig: Rig, tmp_path: Path) -> None:
    vault = rig.vault
    join = {
        "address": f"127.0.0.1:{rig.ports['a']}",
        "key_id": "0",
        "secret": "0",
        "host_name": "h",
        "roots_pem": vault.roots_pem.decode(),
        "server": vault.server().identity.uri,
    }
    (tmp_path / "join.json").write_text(json.dumps(join))
    config = tmp_path / "host.toml"
    config.write_text(
        f'state = "{tmp_path}/state"\nstore = "{tmp_path}/store"\nvms = "{tmp_path}/vms"\n'
        f'join_file = "{tmp_path}/join.json"\nlisten = "127.0.0.1:0"\n'
    )
    with subprocess.Popen([str(PROGRAM), "--config", str(config), "serve"], stderr=subprocess.PIPE, text=True) as agent:
        assert agent.stderr is not None
        assert "provider_unreachable" in agent.stderr.readline()
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(10) == 0
