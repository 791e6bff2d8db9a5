"""Use cases of the vault."""

from pathlib import Path

from sqlalchemy.exc import IntegrityError

from coordinator.inventory.mutation import Mutation
from coordinator.jobs import Jobs, TaskContext, TaskPlan
from coordinator.pki import Authority
from coordinator.store.engine import Database
from coordinator.vault import store
from coordinator.vault.model import LONGEST_REGION, AuthorityOfAnotherVault, NoVault, RegionTooLong, Vault, VaultExists
from twinsite import names
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.clock import Clock

_ACTIVATE = "vault.activate"


async def authority_of(database: Database, directory: Path, clock: Clock) -> Authority:
    """The authority in `directory`, made for a new database only: with another one every member would be a stranger.

    Raises AuthorityOfAnotherVault, AuthorityDamaged.
    """
    async with database.read() as connection:
        known = await store.identity(connection)
    if known is not None and not directory.exists():
        raise AuthorityOfAnotherVault(known, str(directory), "")
    authority = Authority.open(directory, clock)
    try:
        async with database.write() as connection:
            known = await store.identity(connection)
            if known is None:
                await store.claim(connection, authority.vault)
    except IntegrityError:  # another program was first
        async with database.read() as connection:
            known = await store.identity(connection)
    if known is not None and known != authority.vault:
        raise AuthorityOfAnotherVault(known, str(directory), authority.vault)
    return authority


class Vaults:
    """`vault_id` comes from the authority, which is older than the vault's name."""

    def __init__(self, database: Database, jobs: Jobs, clock: Clock, vault_id: str) -> None:
        self._database, self._jobs, self._clock, self._vault_id = database, jobs, clock, vault_id
        jobs.handler(_ACTIVATE, self._activate)

    async def create(self, mutation: Mutation, name: str, region: str) -> admin_pb2.JobRef:
        """Name the vault and make it active. Raises InvalidName, RegionTooLong, VaultExists."""
        names.check(name, "vault")
        if len(region) > LONGEST_REGION or (region and not region.isprintable()):
            raise RegionTooLong
        now = self._clock.now()
        async with self._database.write() as connection:
            answered = await mutation.repeated(connection, admin_pb2.JobRef, now=now)
            if answered is not None:
                return answered
            if not await store.create(connection, name, region, now=now):
                held = await store.get(connection)
                raise VaultExists(held.name if held else name)
            job_id = await self._jobs.submit(
                connection,
                kind="vault.create",
                target=f"vault/{name}",
                tasks=[TaskPlan(name="Make the vault active", kind=_ACTIVATE, stage=1)],
                created_by=mutation.actor,
                request_id=mutation.request_id,
                result={"vault_id": self._vault_id},
            )
            return await mutation.done(
                connection, f"vault/{name}", admin_pb2.JobRef(job_id=job_id), now=now, facts={"region": region}
            )

    async def show(self) -> Vault:
        """Raises NoVault."""
        async with self._database.read() as connection:
            vault = await store.get(connection)
        if vault is None:
            raise NoVault
        return vault

    async def name(self) -> str:
        """Empty before it was created."""
        async with self._database.read() as connection:
            vault = await store.get(connection)
        return "" if vault is None else vault.name

    async def _activate(self, context: TaskContext) -> None:
        async with context.database.write() as connection:
            await store.activate(connection)
