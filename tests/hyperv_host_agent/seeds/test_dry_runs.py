"""What a dry run of a seed asks the hosts: the same checks as the real thing, and nothing is changed."""

import shutil
from pathlib import Path

from tests.fakes.seeded_pair import Seeded, seeded_pair


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file beneath, and when it was changed."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


async def refused(seeded: Seeded, path: Path) -> str:
    """How a path is refused for an export, in a dry run as really."""
    foretold, done = await seeded.check_export(path), await seeded.export(path)
    assert foretold.error == done.error
    return foretold.error.code


async def test_a_dry_run_refuses_what_an_export_refuses_in_the_same_words(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        on_host = tmp_path / "not-media"
        on_host.mkdir()
        assert await refused(seeded, on_host) == "SEED_PATH_ON_HYPERVISOR"
        assert await refused(seeded, tmp_path / "missing") == "SEED_PATH_MISSING"
        seeded.around.room = 4096
        assert await refused(seeded, seeded.medium) == "SEED_PATH_TOO_SMALL"
        assert list(seeded.medium.iterdir()) == []


async def test_a_dry_run_of_an_export_says_what_it_needs_and_writes_nothing(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        found = await seeded.check_export()
        assert found.ok, found.error
        assert "would be written to" in found.note
        assert "are free there" in found.note
        assert list(seeded.medium.iterdir()) == []
        assert (await seeded.export()).ok
        before = content(seeded.medium)
        assert "complete already" in (await seeded.check_export()).note
        assert content(seeded.medium) == before


async def test_a_seed_that_is_not_whole_any_more_is_left_as_it_is_by_a_dry_run(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        assert (await seeded.export()).ok
        seeded.parts()[0].unlink()
        before = content(seeded.medium)
        found = await seeded.check_export()
        assert found.ok, found.error
        assert "would be written to" in found.note
        assert content(seeded.medium) == before
        other = seeded.folder.with_name(seeded.folder.name[:-4] + "0000")
        shutil.move(seeded.folder, other)
        assert await refused(seeded, seeded.medium) == "SEED_PATH_TAKEN"


async def test_a_dry_run_of_an_import_names_the_parts_that_are_missing_and_reads_nothing_in(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        assert (await seeded.check_import()).error.code == "SEED_MISSING"
        assert (await seeded.export()).ok
        whole = await seeded.check_import()
        assert whole.ok, whole.error
        assert f"{len(seeded.parts())} parts, " in whole.note
        assert "could be recovered then" in whole.note
        first = seeded.parts()[0]
        kept = first.read_bytes()
        first.unlink()
        assert "part 1" in (await seeded.check_import()).note
        assert seeded.two.at_target.statuses[seeded.machine.id].awaiting_seed
        first.write_bytes(kept)
        assert (await seeded.import_()).ok


async def test_an_import_ends_with_the_instant_of_the_first_point_that_can_be_recovered(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        assert (await seeded.export()).ok
        imported = await seeded.import_()
        assert imported.ok, imported.error
        assert "the first point that can be recovered" in imported.note
        assert "of an instant after 20" in imported.note or ", of 20" in imported.note
