"""What a policy may say, what it makes of the points there are, and what each source host is told of it."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from coordinator.protection.policy import MOST_POINTS, Policy, doubts, most_points
from coordinator.protection.retention import would_go
from coordinator.store.engine import Database
from twinsite import schedules
from twinsite.api.types.v1 import types_pb2
from twinsite.errors import InvalidInput

NOW = 1_800_000_000.0
DAY = 86400


def said(keep: str = "none", **fields) -> types_pb2.Policy:
    values = {"frequency_seconds": 30, "additional_points": 0, "compression": True, **fields}
    return types_pb2.Policy(tiers=schedules.parse_keep(keep), **values)


def made(keep: str = "none", **fields) -> Policy:
    return Policy.from_proto(said(keep, **fields))


@pytest.mark.parametrize("keep", ["none", "all:1h", "all:1h,5m:24h,1h:7d,1d:90d", "1h:7d"])
def test_a_whole_policy_survives_the_wire(keep):
    rates = [schedules.parse_rate("10 MB/s mon-fri 08:00-18:00"), schedules.parse_rate("1 KiB/s")]
    policy = said(keep, additional_points=5, application_hours=4, vm_rates=rates, link_rates=rates[:1])
    assert Policy.from_proto(policy).to_proto() == policy


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"application_hours": 13}, "INVALID_POLICY"),
        ({"application_hours": 4, "additional_points": 4}, "APPLICATION_TOO_RARE"),
        ({"tiers": [types_pb2.RetentionTier(every_seconds=0, for_seconds=0)]}, "INVALID_TIER"),
        ({"tiers": [types_pb2.RetentionTier(every_seconds=60, for_seconds=59)]}, "INVALID_TIER"),
        ({"tiers": [types_pb2.RetentionTier(every_seconds=60, for_seconds=2**32 - 1)]}, "INVALID_TIER"),
        ({"tiers": schedules.parse_keep("5m:1d,all:2d")}, "TIERS_UNORDERED"),
        ({"tiers": schedules.parse_keep("5m:1d,1h:1d")}, "TIERS_UNORDERED"),
        ({"tiers": schedules.parse_keep("all:1h") * 9}, "INVALID_POLICY"),
        ({"frequency_seconds": 1, "tiers": schedules.parse_keep("all:1d")}, "TOO_MANY_POINTS"),
        ({"vm_rates": [types_pb2.RateRule(bytes_per_second=1023)]}, "INVALID_RATE"),
        ({"link_rates": [types_pb2.RateRule(bytes_per_second=4096, days=128)]}, "INVALID_RATE"),
        ({"link_rates": [types_pb2.RateRule(bytes_per_second=4096, from_minute=1440)]}, "INVALID_RATE"),
        ({"link_rates": [types_pb2.RateRule(bytes_per_second=4096, to_minute=1441)]}, "INVALID_RATE"),
        ({"vm_rates": [types_pb2.RateRule(bytes_per_second=4096)] * 33}, "INVALID_POLICY"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(fields, code):
    policy = types_pb2.Policy(**{"frequency_seconds": 30, **fields})
    with pytest.raises(InvalidInput) as refused:
        Policy.from_proto(policy)
    assert refused.value.code == code
    assert refused.value.text("next_step")


def test_the_points_of_tiers_are_counted_once_where_they_overlap():
    assert most_points(made("all:1h")) == 1 + 120
    assert most_points(made("all:1h,5m:24h,1h:7d,1d:90d")) == 1 + 120 + 23 * 12 + 6 * 24 + 83
    assert most_points(made("all:1h,5m:24h,1h:7d,1d:90d", frequency_seconds=1, additional_points=24)) <= MOST_POINTS


def test_what_can_never_be_kept_is_said():
    assert not doubts(made("all:1h,5m:24h", application_hours=2))
    assert "keeps nothing" in doubts(made("all:1m", frequency_seconds=300))[0]
    assert "every 5m only" in doubts(made("30s:1h", frequency_seconds=300))[0]
    assert "not tried" in doubts(made(application_hours=4))[0]


def test_the_source_hosts_of_a_pair_share_what_its_link_may_carry():
    rates = [schedules.parse_rate("30 MB/s")]
    told = made(vm_rates=rates, link_rates=rates, application_hours=4).told(source_hosts=3)
    assert told.link_rates[0].bytes_per_second == 10_000_000
    assert told.vm_rates[0].bytes_per_second == 30_000_000
    assert told.application_hours == 0, "nothing is kept, so nothing is tried"
    assert (
        made(link_rates=[schedules.parse_rate("1 KiB/s")]).told(source_hosts=9).link_rates[0].bytes_per_second == 1024
    )


def points(*ages: float, **marks) -> list[types_pb2.Point]:
    ordered = sorted(ages, reverse=True)
    made = [
        types_pb2.Point(cycle=number, instant=Timestamp(seconds=int(NOW - age)), consistency="crash")
        for number, age in enumerate(ordered, 1)
    ]
    for name, cycle in marks.items():
        point = made[cycle - 1]
        if name == "locked":
            point.locked_until.FromSeconds(int(NOW) + 60)
        elif name == "expired":
            point.locked_until.FromSeconds(int(NOW) - 60)
        else:
            setattr(point, name, "t-1" if name == "pinned_by" else True)
    return made


def test_points_that_nobody_keeps_would_go_and_marked_ones_never():
    five = points(4 * DAY, 3 * DAY, 2 * DAY, DAY, 0, kept=1, locked=2, pinned_by=3, expired=4)
    assert would_go(five, made(), now=NOW) == [4]
    assert would_go(five, made("1d:2d"), now=NOW) == []
    assert would_go([], made(), now=NOW) == []


def test_the_first_point_of_each_stretch_stays():
    ages = [minutes * 60 for minutes in range(180)]
    gone = would_go(points(*ages), made("1h:3h"), now=NOW)
    assert 180 - len(gone) in (4, 5)  # three or four hours, and the newest
    assert would_go(points(*ages), made("all:3h"), now=NOW) == []
    assert 180 - len(would_go(points(*ages), made(additional_points=2), now=NOW)) == 3


async def test_policies_and_points_are_stored_as_they_are(database: Database):
    from coordinator.protection import store
    from coordinator.protection.model import Pair

    policy = made("all:1h,5m:24h", additional_points=3, vm_rates=[schedules.parse_rate("10 MB/s sat 22:00-06:00")])
    pair = Pair(
        id="p-1", name="a:b", source_cloud="a", target_cloud="b", policy=policy, active=True, job_id="j", created=NOW
    )
    async with database.write() as connection:
        await store.insert_pair(connection, pair)
        assert await store.list_pairs(connection) == [pair]
        changed = made("1h:7d", application_hours=2, link_rates=[schedules.parse_rate("1 GB/s")])
        await store.set_policy(connection, "p-1", changed)
        assert (await store.list_pairs(connection))[0].policy == changed

        many = points(*range(1200))
        await store.replace_points(connection, "vm", "h", many)
        many[5].kept = True
        await store.replace_points(connection, "vm", "h", many[5:])
        many[6].name = "before the update"
        many[6].vm_id = "vm"
        await store.put_point(connection, "h", many[6])
        rows = await connection.execute(store.points.select().order_by(store.points.c.cycle))
        assert [types_pb2.Point.FromString(row.document) for row in rows] == many[5:]
