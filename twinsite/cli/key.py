"""`twinsite key`: registration keys."""

import os
from pathlib import Path

import click

from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.cli import confirm, names
from twinsite.cli.command import DURATION, Context, command
from twinsite.cli.home import NoFile
from twinsite.cli.output import age, local


@click.group()
def key() -> None:
    """Registration keys: what a VMM server registers with."""


@key.command()
@click.option("--ttl", type=DURATION, default=432000, show_default="5d", help="How long it may be used; 5d at most.")
@click.option(
    "--uses", type=click.IntRange(1, 32), default=2, show_default=True, help="How many servers it may register."
)
@click.option(
    "-O", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write (0600)."
)
@command(mutates=True)
async def create(context: Context, ttl: int, uses: int, out: Path) -> None:
    """Make a registration key file; its secret is in this file and nowhere else.

    \b
    twinsite key create -O registration.json
    twinsite key create --uses 1 --ttl 1d -O site-a.json
    """
    # The file is made first: a key whose secret could not be kept would be of no use to anyone.
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise NoFile(out, error.strerror or str(error)) from None
    kept = False
    try:
        with os.fdopen(descriptor, "wb") as file:
            async with context.connect() as api:
                made = await api.keys.Create(admin_pb2.CreateKeyRequest(ttl_seconds=ttl, uses=uses))
            file.write(made.file_json)
            file.flush()
            os.fsync(file.fileno())
            kept = True
    finally:
        if not kept:
            out.unlink()
    facts = [
        ("Key", made.key.id),
        ("File", str(out)),
        ("Uses", str(made.key.uses)),
        ("Expires", local(made.key.expires)),
    ]
    context.output.one("Key", made.key, facts)
    context.output.done(
        "copy the file to the servers", following=f"twinsite-provider register --key-file {out} --name NAME"
    )


@key.command(name="list")
@command()
async def list_(context: Context) -> None:
    """Registration keys, newest first.

    \b
    twinsite key list
    """
    async with context.connect() as api:
        found = (await api.keys.List(admin_pb2.Empty())).keys
    now = context.clock.now()
    rows = [
        (k.id, k.state, f"{k.used}/{k.uses}", ",".join(k.servers), local(k.expires), k.created_by, age(k.issued, now))
        for k in found
    ]
    columns = ("KEY", "STATE", "USED", "SERVERS", "EXPIRES", "BY", "AGE")
    context.output.items("KeyList", admin_pb2.Key, found, columns, rows)


@key.command()
@click.argument("id_", metavar="KEY", shell_complete=names.keys)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@command(mutates=True)
async def revoke(context: Context, id_: str, yes: bool, dry_run: bool) -> None:
    """Make a key worthless; servers it registered stay.

    \b
    twinsite key revoke 3f2a91c0d4e5b6a7 -y
    """
    async with context.connect() as api:
        k = await api.keys.Revoke(admin_pb2.RevokeKeyRequest(id=id_, dry_run=True))
        left = k.uses - k.used if k.state == "active" else 0
        stay = f"; {', '.join(k.servers)} {'stays' if len(k.servers) == 1 else 'stay'} registered" if k.servers else ""
        confirm.show([f"key {k.id} ({k.state.replace('_', ' ')}) registers no server, now {left} more{stay}"])
        if dry_run:
            return
        confirm.yes(f"revoking key {id_}", given=yes, no_input=context.no_input)
        revoked = await api.keys.Revoke(admin_pb2.RevokeKeyRequest(id=id_))
    context.output.one("Key", revoked, [("Key", revoked.id), ("State", revoked.state)])
