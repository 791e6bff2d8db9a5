"""Every method the provider serves is in its table, and nothing else is."""

from provider_agent.rpc import JOIN_TABLE, LINK_TABLE
from twinsite.access import methods_of
from twinsite.api.provider.v1 import host_link_pb2 as pb


def test_the_tables_are_complete_and_only_joining_is_open():
    services = pb.DESCRIPTOR.services_by_name
    assert methods_of([services["HostEnrollment"]]) == set(JOIN_TABLE)
    assert methods_of([services["HostLink"]]) == set(LINK_TABLE)
    assert set(services) == {"HostEnrollment", "HostLink"}
    assert all(rule.callers == {"host"} for rule in LINK_TABLE.values())
