"""An initial copy on media, through two whole agents: real TLS, real store, a VM in memory that goes on writing."""

import json
from pathlib import Path

from tests.fakes.agent_pair import FIRST, SECOND
from tests.fakes.newest_point import newest
from tests.fakes.seeded_pair import Seeded, seeded_pair
from twinsite.extents import CLUSTER


async def assert_equal(seeded: Seeded) -> None:
    await seeded.two.settled(seeded.machine.id)
    _, found = await newest(seeded.two.target, seeded.machine.id)
    assert found == {FIRST: seeded.guest.content(FIRST), SECOND: seeded.guest.content(SECOND)}


async def test_a_seed_is_carried_while_changes_flow_and_the_next_point_is_the_source(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        guest, two = seeded.guest, seeded.two
        wire = two.at_source.statuses[seeded.machine.id].wire_bytes
        guest.write(FIRST, 5 * CLUSTER, b"before the export")
        exported = await seeded.export()
        assert exported.ok, exported.error
        assert exported.seed_id in seeded.folder.name
        guest.write(FIRST, 7 * CLUSTER, b"after the export")
        assert seeded.two.at_target.points.get(seeded.machine.id, []) == []
        imported = await seeded.import_()
        assert imported.ok, imported.error
        assert imported.seed_id == exported.seed_id
        await assert_equal(seeded)
        status = two.at_target.statuses[seeded.machine.id]
        assert not status.awaiting_seed
        assert two.at_source.statuses[seeded.machine.id].wire_bytes - wire < 20 * CLUSTER  # the base did not travel
        again = await seeded.import_()
        assert again.error.code == "SEED_NOT_AWAITED"


async def test_nothing_on_the_medium_is_readable_and_everything_is_named(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        await seeded.export()
        manifest = json.loads((seeded.folder / "manifest.json").read_bytes())["seed"]
        assert manifest["vm"] == seeded.machine.id
        assert manifest["vm_name"] == "web01"
        assert manifest["target_host"] == seeded.two.target.host_id
        assert len(manifest["parts"]) == len(seeded.parts()) > 1
        for path in seeded.parts():
            assert b"text text" not in path.read_bytes()
