"""The vault is created once, as a job, and its database and authority stay together."""

import asyncio
from pathlib import Path

import pytest

from coordinator.inventory.mutation import Mutation
from coordinator.jobs import Jobs, State
from coordinator.pki import Authority
from coordinator.store.engine import Database
from coordinator.vault.model import AuthorityOfAnotherVault, NoVault, RegionTooLong, VaultExists
from coordinator.vault.service import Vaults, authority_of
from twinsite.clock import MovedClock
from twinsite.names import InvalidName

CREATE = Mutation("vault.create", "ana", request_id="r-1")


@pytest.fixture
async def vaults(database: Database, jobs: Jobs, clock: MovedClock, tmp_path: Path) -> Vaults:
    authority = await authority_of(database, tmp_path / "state" / "pki", clock)
    made = Vaults(database, jobs, clock, authority.vault)
    await jobs.start()
    return made


async def test_creating_it_is_a_job_that_ends_with_an_active_vault(vaults: Vaults, jobs: Jobs) -> None:
    with pytest.raises(NoVault, match="no vault yet"):
        await vaults.show()
    assert await vaults.name() == ""
    job_id = (await vaults.create(CREATE, "main", "north")).job_id
    async with asyncio.timeout(20):
        ended = [job async for job in jobs.changes(job_id)][-1]
    vault = await vaults.show()
    assert (ended.state, ended.target, dict(ended.result)) == (State.SUCCEEDED, "vault/main", {"vault_id": vault.id})
    assert (vault.name, vault.region, vault.state, await vaults.name()) == ("main", "north", "active", "main")


async def test_a_repeat_is_answered_and_a_second_one_refused(vaults: Vaults) -> None:
    first = await vaults.create(CREATE, "main", "")
    assert await vaults.create(CREATE, "main", "") == first
    with pytest.raises(VaultExists, match="main"):
        await vaults.create(Mutation("vault.create", "ana", request_id="r-2"), "other", "")
    assert (await vaults.show()).name == "main"


@pytest.mark.parametrize("name", ["", "../x", "a\nb", "x" * 300])
async def test_a_wrong_name_changes_nothing(vaults: Vaults, name: str) -> None:
    with pytest.raises(InvalidName):
        await vaults.create(CREATE, name, "")
    with pytest.raises(RegionTooLong):
        await vaults.create(CREATE, "main", "x" * 64)
    with pytest.raises(NoVault):
        await vaults.show()


async def test_a_database_is_not_used_with_the_authority_of_another_vault(
    database: Database, clock: MovedClock, tmp_path: Path
) -> None:
    own, other = tmp_path / "own" / "pki", tmp_path / "other" / "pki"
    first = await authority_of(database, own, clock)
    assert (await authority_of(database, own, clock)).vault == first.vault
    with pytest.raises(AuthorityOfAnotherVault, match="none yet"):
        await authority_of(database, other, clock)
    assert not other.exists(), "an authority was made that nobody asked for"
    Authority.open(other, clock)
    with pytest.raises(AuthorityOfAnotherVault, match=first.vault):
        await authority_of(database, other, clock)
