"""Policies, grants that are due, and what an owner means for two hosts."""

import dataclasses

import pytest

from coordinator.protection.errors import InvalidPolicy
from coordinator.protection.model import (
    GRANT_SECONDS,
    Fence,
    Phase,
    Protected,
    assignments,
    direction,
    grant_is_due,
)
from coordinator.protection.policy import Policy
from twinsite.api.types.v1 import types_pb2

NOW = 1_800_000_000.0
VM = Protected(
    vm_id="vm",
    vm_name="web01",
    pair_id="p",
    source_host="a",
    target_host="b",
    owner_host="a",
    term=1,
    phase=Phase.PROTECTED,
    paused=False,
    disks=(("d", 10),),
    grant=types_pb2.SignedDocument(body=b"grant"),
    grant_expires=NOW + GRANT_SECONDS,
    job_id="j",
    created=NOW,
)
ADDRESSES = {"a": "a:8084", "b": "b:8084"}


@pytest.mark.parametrize("frequency", [1, 5, 30, 300, 900, 86400])
@pytest.mark.parametrize("points", [0, 24])
def test_policies_in_range_survive_the_wire(frequency, points):
    policy = Policy(frequency_seconds=frequency, additional_points=points, compression=False, delete_replica=False)
    assert Policy.from_proto(policy.to_proto()) == policy


@pytest.mark.parametrize(("frequency", "points"), [(0, 0), (86401, 0), (30, 25)])
def test_policies_out_of_range_are_refused_with_the_range(frequency, points):
    with pytest.raises(InvalidPolicy, match=r"must be [01] to "):
        Policy.from_proto(types_pb2.Policy(frequency_seconds=frequency, additional_points=points))


@pytest.mark.parametrize(
    ("change", "name", "disks", "due"),
    [
        ({}, "web01", (("d", 10),), False),
        ({"grant_expires": NOW + GRANT_SECONDS / 2 + 1}, "web01", (("d", 10),), False),
        ({"grant_expires": NOW + GRANT_SECONDS / 2 - 1}, None, None, True),
        ({}, "web02", (("d", 10),), True),
        ({}, "web01", (("d", 20),), True),
        ({}, "web01", (("d", 10), ("e", 5)), True),
        ({}, "web01", (), False),
        ({}, None, None, False),
        ({"phase": Phase.PREPARING, "grant": None, "grant_expires": 0.0}, "web01", (("d", 20),), False),
        ({"phase": Phase.UNPROTECTING, "grant_expires": NOW}, "web01", (("d", 10),), False),
        ({"phase": Phase.FAILED_OVER, "grant_expires": NOW}, "web01", (("d", 10),), True),
    ],
)
def test_a_grant_is_due_at_half_its_life_and_when_the_vm_changed(change, name, disks, due):
    assert grant_is_due(dataclasses.replace(VM, **change), now=NOW, vm_name=name, disks=disks) is due


def test_the_owner_is_the_source_of_the_grant():
    assert direction(VM) == ("a", "b")
    assert direction(dataclasses.replace(VM, owner_host="b")) == ("b", "a")


def roles(host, item, fences=()):
    made = assignments(host, [(item, Policy().to_proto())], fences, ADDRESSES)
    return [(one.role, one.fenced, one.peer_host_id, one.peer_address, one.term) for one in made]


def test_source_and_target_are_told_of_each_other():
    assert roles("a", VM) == [(types_pb2.ROLE_SOURCE, False, "b", "b:8084", 1)]
    assert roles("b", VM) == [(types_pb2.ROLE_TARGET, False, "a", "", 1)]
    assert roles("c", VM) == []


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.UNPROTECTING])
def test_nobody_has_to_do_anything_before_and_after(phase):
    assert roles("a", dataclasses.replace(VM, phase=phase)) == []


@pytest.mark.parametrize("phase", [Phase.FAILING_OVER, Phase.FAILED_OVER])
def test_the_old_owner_is_fenced_from_the_moment_the_term_is_raised(phase):
    over = dataclasses.replace(VM, phase=phase, owner_host="b", term=2)
    assert roles("a", over) == [(types_pb2.ROLE_SOURCE, True, "b", "", 2)]
    assert roles("b", over) == [(types_pb2.ROLE_TARGET, False, "a", "", 2)]


def test_a_fence_outlives_the_protection_and_yields_to_a_new_one():
    fence = Fence("vm", "web01", "a", 2)
    gone = dataclasses.replace(VM, phase=Phase.UNPROTECTING)
    assert roles("a", gone, [fence]) == [(types_pb2.ROLE_SOURCE, True, "", "", 2)]
    assert roles("b", gone, [fence]) == []
    assert len(roles("a", VM, [fence])) == 1
