"""`python -m demo [--hypervisor libvirt] [--image PATH] [--keep]`."""

import sys
from pathlib import Path

import click

from demo.disk import NoDisk
from demo.embedded_sites import EmbeddedSites
from demo.lab import CommandFailed, Lab
from demo.libvirt_sites import LibvirtSites, NoImage
from demo.process import ProgramFailed
from demo.report import Mismatch, Report
from demo.walk import Walk


@click.command()
@click.option("--image", type=click.Path(path_type=Path), help="Raw or qcow2 image to use as the first disk.")
@click.option("--hypervisor", type=click.Choice(["embedded", "libvirt"]), default="embedded", show_default=True)
@click.option("--keep", is_flag=True, help="Leave the system running and say how to explore it.")
@click.option("--root", type=click.Path(path_type=Path), default=Path(".demo"), show_default=True)
def main(image: Path | None, hypervisor: str, keep: bool, root: Path) -> None:
    """From nothing to a failed-over VM on this machine, every claim checked."""
    report = Report()
    lab = Lab(root.absolute())
    walk = Walk(lab, LibvirtSites(lab, held=not keep) if hypervisor == "libvirt" else EmbeddedSites(lab), report, image)
    kept = False
    try:
        walk.run()
        print("\n" + report.table() + "\n")
        if keep:
            print(walk.explore())
            kept = True
    except (Mismatch, ProgramFailed, CommandFailed, NoDisk, NoImage) as error:
        print(report.table())
        print(f"\n✕ {type(error).__name__}: {error}", file=sys.stderr)
        print(f"  logs: {walk.lab.root}/*.log", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if not kept:  # whatever happened: nobody wants seven processes of a demonstration that broke
            walk.end()
    print(report.line())


main()
