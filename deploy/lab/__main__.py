"""`python -m deploy.lab up | down | status`: libvirt hosts on this machine with a guest, and away with them."""

import sys
from pathlib import Path

import click

from deploy.lab import laboratory
from deploy.lab.machine import LabFailed


@click.group()
@click.option("--root", type=click.Path(path_type=Path), default=Path(".lab"), show_default=True)
@click.pass_context
def main(context: click.Context, root: Path) -> None:
    """Libvirt hosts in namespaces of this machine; root is needed, nothing outside ROOT is touched."""
    context.obj = root.absolute()


@main.command()
@click.option("--hosts", type=click.IntRange(1, 9), default=2, show_default=True)
@click.pass_obj
def up(root: Path, hosts: int) -> None:
    """Hosts, networks, and one guest that runs at the first of them."""
    print(laboratory.up(root, hosts))


@main.command()
@click.pass_obj
def down(root: Path) -> None:
    """Every trace of it away, whatever state it is in."""
    laboratory.down(root)


@main.command()
@click.pass_obj
def status(root: Path) -> None:
    """What runs."""
    print(laboratory.status(root))


try:
    main()
except LabFailed as error:
    print(f"✕ {error}", file=sys.stderr)
    sys.exit(1)
