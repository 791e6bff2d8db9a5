"""`python -m hyperv_host_agent.hypervisors.embedded`: VMs of the embedded hypervisor, for people and demonstrations."""

import contextlib
import json
import re
import sys
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from hyperv_host_agent.hypervisors.base import MachineMissing, MachineSpec, MachineState
from hyperv_host_agent.hypervisors.embedded.creation import NewDisk, create_machine
from hyperv_host_agent.hypervisors.embedded.geometry import BadDiskChange, DiskChange
from hyperv_host_agent.hypervisors.embedded.hypervisor import EmbeddedHypervisor
from hyperv_host_agent.hypervisors.embedded.records import verify_records
from hyperv_host_agent.replication.cycle import DiskGeometry
from twinsite.errors import TwinsiteError
from twinsite.units import GiB, KiB, MiB, size

_UNITS: Final = {"": 1, "K": KiB, "M": MiB, "G": GiB}

vms_option = click.option(
    "--vms", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the VMs."
)
name_option = click.option("--name", required=True, help="Name or id of the VM.")


def _hypervisor(vms: Path) -> EmbeddedHypervisor:
    return EmbeddedHypervisor(vms, vms / ".run")


def _find(hypervisor: EmbeddedHypervisor, name: str) -> MachineState:
    for state in hypervisor.machines():
        if name in (state.spec.name, state.spec.id):
            return state
    raise MachineMissing(name)


def _bytes(text: str, where: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size such as 64MiB", param_hint=where)
    return int(match[1]) * _UNITS[match[2]]


def _named_size(text: str) -> tuple[str, int]:
    name, _, wanted = text.partition("=")
    if not name or not wanted:
        raise click.BadParameter(f"{text!r} is not NAME=SIZE", param_hint="--disk")
    return name, _bytes(wanted, "--disk")


def _disk_of(spec: MachineSpec, name: str) -> DiskGeometry:
    for known in spec.disks:
        if name in (known.name, known.id):
            return known
    raise BadDiskChange(name, f"{spec.name} has no such disk")


def _disk(text: str) -> NewDisk:
    name, _, what = text.partition("=")
    if not name or not what:
        raise click.BadParameter(f"{text!r} is not NAME=IMAGE or NAME=SIZE", param_hint="--disk")
    if Path(what).exists():
        return NewDisk(name, image=Path(what))
    return NewDisk(name, size=_bytes(what, "--disk"))


@click.group()
def main() -> None:
    """VMs of the embedded hypervisor."""


@main.command()
@vms_option
@click.option("--name", required=True, help="Name of the new VM.")
@click.option("--disk", "disks", multiple=True, required=True, help="vda=IMAGE.raw or vda=64MiB; repeatable.")
@click.option("--interval", default=0.05, show_default=True, help="Seconds between two records.")
@click.option("--load", default="0", show_default=True, help="Random writes a second, such as 1MiB, to blank disks.")
def create(vms: Path, name: str, disks: tuple[str, ...], interval: float, load: str) -> None:
    """Create a VM and print its id."""
    new = [_disk(text) for text in disks]
    vm_id = create_machine(
        _hypervisor(vms), name, new, interval_seconds=interval, load_bytes_per_second=_bytes(load, "--load")
    )
    click.echo(vm_id)


@main.command("list")
@vms_option
def list_(vms: Path) -> None:
    """What is there and whether it runs."""
    for state in _hypervisor(vms).machines():
        disks = ", ".join(f"{disk.name} {size(disk.size)}" for disk in state.spec.disks)
        click.echo(f"{state.spec.id}  {state.spec.name}  {state.power.value}  {disks}")


@main.command()
@vms_option
@name_option
def start(vms: Path, name: str) -> None:
    """Start a VM; it goes on when this command ends."""
    hypervisor = _hypervisor(vms)
    hypervisor.start(_find(hypervisor, name).spec.id)


@main.command()
@vms_option
@name_option
@click.option("--timeout", default=10.0, show_default=True, help="Seconds until it is stopped by force.")
def stop(vms: Path, name: str, timeout: float) -> None:
    """Stop a VM."""
    hypervisor = _hypervisor(vms)
    hypervisor.stop(_find(hypervisor, name).spec.id, timeout=timeout)


@main.command()
@vms_option
@name_option
@click.option("--seconds", default=10.0, show_default=True, help="It thaws by itself after that.")
def freeze(vms: Path, name: str, seconds: float) -> None:
    """Keep the guest from writing for a while."""
    hypervisor = _hypervisor(vms)
    answer = hypervisor.ask_guest(_find(hypervisor, name).spec.id, "freeze", seconds=seconds)
    click.echo(json.dumps(answer))


@main.command()
@vms_option
@name_option
def thaw(vms: Path, name: str) -> None:
    """Let a frozen guest write again."""
    hypervisor = _hypervisor(vms)
    hypervisor.ask_guest(_find(hypervisor, name).spec.id, "thaw")


@main.group()
def disk() -> None:
    """Change the disks of a VM, which runs or not; its replication follows by itself."""


@disk.command("add")
@vms_option
@name_option
@click.option("--disk", "text", required=True, help="vdc=64MiB: a blank disk.")
def add_disk(vms: Path, name: str, text: str) -> None:
    """Add a blank disk and print its id."""
    new, wanted = _named_size(text)
    change = DiskChange("add", str(uuid.uuid4()), wanted, new)
    hypervisor = _hypervisor(vms)
    hypervisor.change_disks(_find(hypervisor, name).spec.id, change)
    click.echo(change.disk)


@disk.command()
@vms_option
@name_option
@click.option("--disk", "text", required=True, help="vdb=128MiB: its new size.")
@click.option("--dry-run", is_flag=True, help="Only say what would be cut off.")
def resize(vms: Path, name: str, text: str, dry_run: bool) -> None:
    """Grow or shrink a disk; what is cut off is gone."""
    known, wanted = _named_size(text)
    hypervisor = _hypervisor(vms)
    spec = _find(hypervisor, name).spec
    found = _disk_of(spec, known)
    if dry_run:
        hypervisor.check_disks(spec.id, DiskChange("resize", found.id, wanted))
        cut = max(0, found.size - wanted)
        click.echo(f"{found.name} {size(found.size)} -> {size(wanted)}: {size(cut)} would be cut off")
        return
    hypervisor.change_disks(spec.id, DiskChange("resize", found.id, wanted))


@disk.command("remove")
@vms_option
@name_option
@click.option("--disk", "known", required=True, help="Name or id of the disk.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
def remove_disk(vms: Path, name: str, known: str, dry_run: bool) -> None:
    """Remove a disk and delete its file; recovery points that have it keep it."""
    hypervisor = _hypervisor(vms)
    spec = _find(hypervisor, name).spec
    found = _disk_of(spec, known)
    if dry_run:
        hypervisor.check_disks(spec.id, DiskChange("remove", found.id))
        click.echo(f"{found.name} {size(found.size)}: {hypervisor.disk_path(spec.id, found.id)} would be deleted")
        return
    hypervisor.change_disks(spec.id, DiskChange("remove", found.id))


@main.command()
@vms_option
@name_option
def records(vms: Path, name: str) -> None:
    """Verify the records on a VM's disks; exit status 1 when something was lost, torn or reordered.

    While the VM runs the disks are read at different instants, so freeze it first.
    """
    hypervisor = _hypervisor(vms)
    spec = _find(hypervisor, name).spec
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(contextlib.closing(hypervisor.open_disk(spec.id, disk.id))) for disk in spec.disks
        ]
        report = verify_records(opened)
    click.echo(json.dumps(asdict(report)))
    if report.problems:
        sys.exit(1)


def run() -> None:
    try:
        main()
    except TwinsiteError as error:
        click.echo("\n".join(filter(None, (f"error: {error}", error.text("next_step")))), err=True)
        sys.exit(1)


if __name__ == "__main__":
    run()
