import errno
from pathlib import Path

import pytest

from hyperv_host_agent.seeds import exporting
from hyperv_host_agent.seeds.paths import (
    Linux,
    Mount,
    PathRules,
    SeedMediumFull,
    SeedPathDenied,
    SeedPathMissing,
    SeedPathOnHypervisor,
    SeedPathTooSmall,
    host_of,
    parse_mounts,
    server_of,
)
from tests.fakes.surroundings import FakeSurroundings


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    folder = tmp_path / "medium"
    folder.mkdir()
    return folder


def rules(tmp_path: Path, around: FakeSurroundings) -> PathRules:
    (tmp_path / "vms").mkdir(exist_ok=True)
    return PathRules([tmp_path / "vms", tmp_path / "not-made-yet"], around)


def test_a_medium_of_its_own_is_taken_and_left_as_it_was(tmp_path: Path, medium: Path):
    checked = rules(tmp_path, FakeSurroundings([medium]))
    checked.check_export(medium, "host-a", ["10.0.0.1"])
    checked.check_import(medium, "host-a", ["10.0.0.1"])
    assert list(medium.iterdir()) == []


@pytest.mark.parametrize("path", ["medium", "/no/such/place", "/dev/null", "/" + "x" * 5000, "/a\0b"])
def test_what_is_no_directory_is_missing(tmp_path: Path, path: str):
    with pytest.raises(SeedPathMissing):
        rules(tmp_path, FakeSurroundings()).check_export(Path(path), "host-a", [])


def test_the_disk_of_the_vms_is_refused_and_named(tmp_path: Path, medium: Path):
    with pytest.raises(SeedPathOnHypervisor, match=r"shares the file system of .*vms on host host-a"):
        rules(tmp_path, FakeSurroundings()).check_export(medium, "host-a", [])


def test_a_link_out_of_the_medium_is_followed_before_it_is_judged(tmp_path: Path, medium: Path):
    (medium / "link").symlink_to(tmp_path)
    with pytest.raises(SeedPathOnHypervisor):
        rules(tmp_path, FakeSurroundings([medium])).check_export(medium / "link", "host-a", [])


@pytest.mark.parametrize(
    ("kind", "source", "served"),
    [
        ("nfs4", "hv2:/export", "served by 10.0.0.2"),
        ("nfs", "10.0.0.2:/export", "served by 10.0.0.2"),
        ("cifs", "//HV2/share", "served by 10.0.0.2"),
        ("fuse.sshfs", "root@hv2:/srv", "served by 10.0.0.2"),
        ("nfs4", "[fd00::2]:/export", r"served by fd00::2"),
        ("nfs4", "127.0.0.1:/export", "served by this host"),
        ("cifs", "//me/share", "served by this host"),
        ("nfs4", "nas:/export", ""),
        ("cifs", "//nas/share", ""),
        ("ext4", "hv2:/export", ""),
    ],
)
def test_a_share_of_a_hypervisor_host_is_refused(tmp_path: Path, medium: Path, kind: str, source: str, served: str):
    around = FakeSurroundings(
        [medium],
        [Mount(Path("/"), "ext4", "/dev/vda"), Mount(medium, "ext4", "/dev/sdb"), Mount(medium, kind, source)],
        {"hv2": "10.0.0.2", "HV2": "10.0.0.2", "me": "10.0.0.9", "nas": "10.0.0.7"},
        frozenset({"10.0.0.9"}),
    )
    checked = rules(tmp_path, around)
    (medium / "deep").mkdir()
    if not served:
        checked.check_export(medium / "deep", "host-a", ["10.0.0.1:8084", "10.0.0.2:8084"])
        return
    for check in (checked.check_export, checked.check_import):
        with pytest.raises(SeedPathOnHypervisor, match=served):
            check(medium / "deep", "host-a", ["10.0.0.1:8084", "10.0.0.2:8084", "[fd00::2]:8084"])


def test_a_loop_device_is_judged_by_the_file_it_is_made_of(tmp_path: Path, medium: Path):
    stick = tmp_path / "stick"
    stick.mkdir()
    for file, refused in ((tmp_path / "image.raw", True), (stick / "image.raw", False)):
        file.write_bytes(b"")
        around = FakeSurroundings([medium, stick], [Mount(medium, "ext4", "/dev/loop7")], loops={"/dev/loop7": file})
        if refused:
            with pytest.raises(SeedPathOnHypervisor, match="shares the file system"):
                rules(tmp_path, around).check_export(medium, "host-a", [])
        else:
            rules(tmp_path, around).check_export(medium, "host-a", [])


def test_what_cannot_be_written_is_denied(tmp_path: Path):
    proc = Path("/proc/self/fd")  # a directory nobody makes files in
    with pytest.raises(SeedPathDenied, match="written"):
        rules(tmp_path, FakeSurroundings([proc, Path("/proc")])).check_export(proc, "host-a", [])


def test_too_little_room_is_told_in_numbers(tmp_path: Path, medium: Path):
    with pytest.raises(SeedPathTooSmall, match=r"has 1\.0 GiB free, the seed may need 2\.0 GiB"):
        rules(tmp_path, FakeSurroundings([medium], room=1 << 30)).check_room(medium, 2 << 30)


def test_on_a_real_host_the_root_file_system_is_its_own_and_memory_is_not(tmp_path: Path):
    around = Linux()
    if around.device(tmp_path) == around.device(Path("/")):
        with pytest.raises(SeedPathOnHypervisor):
            PathRules([tmp_path], around).check_export(tmp_path, "host-a", [])
    assert any(mount.point == Path("/proc") for mount in around.mounts())
    assert around.addresses("localhost") & {"127.0.0.1", "::1"}
    assert around.addresses("no such name, not even in form") == frozenset()
    assert around.here("127.0.0.1")
    assert not around.here("192.0.2.1")
    assert around.free(tmp_path) > 0
    assert around.beneath("/dev/sda1") is None
    assert around.beneath("/dev/loop9999") is None


def test_names_of_servers_are_found_in_every_form():
    assert [server_of(x) for x in ("nas:/e", "//nas/s", "me@nas:/e", "[fd00::1]:/e", "nas", "")] == [
        "nas",
        "nas",
        "nas",
        "fd00::1",
        "nas",
        "",
    ]
    assert [host_of(x) for x in ("10.0.0.1:8084", "10.0.0.1", "fd00::1", "[fd00::1]:8084", "hv2", "hv2:1")] == [
        "10.0.0.1",
        "10.0.0.1",
        "fd00::1",
        "fd00::1",
        "hv2",
        "hv2",
    ]
    line = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - cifs //nas/a\\040b rw,errors=continue"
    assert parse_mounts(f"{line}\nnonsense\n") == [Mount(Path("/mnt 2"), "cifs", "//nas/a b")]


def test_a_medium_that_becomes_full_is_told_from_one_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(SeedMediumFull, match="became full") as full, exporting.writing(tmp_path, lambda: 4096):
        raise OSError(errno.ENOSPC, "no space")
    assert "goes on where it was" in full.value.text("next_step")
