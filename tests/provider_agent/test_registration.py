import json
from pathlib import Path

import pytest

from provider_agent.app import identity_folder
from provider_agent.inventory import Selection
from provider_agent.registration import AlreadyRegistered, BadAnswer, BadProxy, Request, UnknownCloud, register
from tests.fakes.coordinator import FakeCoordinator
from tests.provider_agent.conftest import Lab
from twinsite.clock import MovedClock, SystemClock
from twinsite.credentials import Credentials, NoCredentials
from twinsite.errors import TwinsiteError, Unauthenticated, Unreachable
from twinsite.names import InvalidName
from twinsite.registration_key import ForeignVault, KeyFileEdited, KeyFileExpired, KeyFileUnusable


async def ask(lab: Lab, key_file: Path, **changes: object) -> Credentials:
    given = {"name": "site-a", "vault_name": "", "selection": Selection(every=True), "proxy": ""} | changes
    clock = given.pop("clock", SystemClock())
    return await register(Request(key_file, **given), identity_folder(lab.settings.state), lab.settings.fabric, clock)


async def refused(lab: Lab, error: type[TwinsiteError], key_file: Path, **changes: object) -> TwinsiteError:
    """Registration is refused, nothing was sent, nothing is stored, and the text says what to do."""
    before = lab.coordinator.registrations
    with pytest.raises(error) as caught:
        await ask(lab, key_file, **changes)
    assert lab.coordinator.registrations == before
    with pytest.raises(NoCredentials):
        Credentials.load(identity_folder(lab.settings.state))
    assert caught.value.text("next_step")
    return caught.value


async def test_registering_stores_an_identity_and_shows_the_vault(
    lab: Lab, coordinator: FakeCoordinator, capsys: pytest.CaptureFixture[str]
):
    made = await lab.register()
    stored = Credentials.load(identity_folder(lab.settings.state))
    assert stored.identity == made.identity
    assert stored.identity.id in coordinator.servers
    assert stored.meta["vault_name"] == "main"
    assert not list(identity_folder(lab.settings.state).glob("registration-key*"))


async def test_a_lost_reply_does_not_lose_the_server(lab: Lab, coordinator: FakeCoordinator):
    key_file = coordinator.key_file(lab.folder / "vault.key")
    coordinator.lose_replies = 1
    with pytest.raises(Unreachable):
        await ask(lab, key_file)
    made = await ask(lab, key_file)
    assert list(coordinator.servers) == [made.identity.id]


async def test_registering_twice_is_refused_and_says_how_to_do_it_anew(lab: Lab, coordinator: FakeCoordinator):
    made = await lab.register()
    with pytest.raises(AlreadyRegistered) as caught:
        await lab.register()
    assert "twinsite server remove site-a" in caught.value.text("next_step")
    assert coordinator.registrations == 1
    assert Credentials.load(identity_folder(lab.settings.state)).identity == made.identity


async def test_an_edited_key_file_is_refused(lab: Lab, coordinator: FakeCoordinator):
    key_file = coordinator.key_file(lab.folder / "vault.key")
    told = json.loads(key_file.read_text())
    for field, value in (("endpoint", "127.0.0.1:1"), ("secret", "x" * 43), ("expires", told["expires"] + 1)):
        key_file.write_text(json.dumps({**told, field: value}))
        await refused(lab, KeyFileEdited, key_file)


async def test_a_file_that_is_no_key_file_is_refused(lab: Lab, coordinator: FakeCoordinator):
    await refused(lab, KeyFileUnusable, lab.folder / "missing.key")
    for content in (b"", b"[]", b"not json", b"\xff" * 10, b"{" * 100_000):
        path = lab.folder / "other.key"
        path.write_bytes(content)
        await refused(lab, KeyFileUnusable, path)


async def test_an_expired_key_file_is_refused(lab: Lab, coordinator: FakeCoordinator):
    key_file = coordinator.key_file(lab.folder / "vault.key")
    clock = MovedClock(SystemClock().now() + 6 * 86400)
    await refused(lab, KeyFileExpired, key_file, clock=clock)


async def test_a_key_file_of_another_vault_than_named_is_refused(lab: Lab, coordinator: FakeCoordinator):
    key_file = coordinator.key_file(lab.folder / "vault.key")
    error = await refused(lab, ForeignVault, key_file, vault_name="other")
    assert "main" in str(error)
    await ask(lab, key_file, vault_name="main")


async def test_a_key_the_coordinator_does_not_know_is_refused(lab: Lab, coordinator: FakeCoordinator):
    key_file = coordinator.key_file(lab.folder / "vault.key")
    coordinator.keys.clear()
    with pytest.raises(Unauthenticated):
        await ask(lab, key_file)
    with pytest.raises(NoCredentials):
        Credentials.load(identity_folder(lab.settings.state))


async def test_a_certificate_from_another_ca_is_not_stored(lab: Lab, coordinator: FakeCoordinator):
    coordinator.foreign_certificates = True
    key_file = coordinator.key_file(lab.folder / "vault.key")
    with pytest.raises(BadAnswer):
        await ask(lab, key_file)
    with pytest.raises(NoCredentials):
        Credentials.load(identity_folder(lab.settings.state))


async def test_a_coordinator_of_another_vault_at_the_same_address_gets_nothing(lab: Lab, coordinator: FakeCoordinator):
    other = FakeCoordinator(1, 1)
    other.enrollment_address = coordinator.enrollment_address
    await refused(lab, Unreachable, other.key_file(lab.folder / "vault.key"))


async def test_an_unreachable_coordinator_is_said_and_the_key_stays_good(lab: Lab):
    key_file = lab.coordinator.key_file(lab.folder / "vault.key")
    await refused(lab, Unreachable, key_file)
    async with lab.coordinator.serving():
        await ask(lab, key_file)


async def test_bad_names_clouds_and_proxies_are_refused_before_anything_is_sent(lab: Lab, coordinator: FakeCoordinator):
    key_file = coordinator.key_file(lab.folder / "vault.key")
    for name in ("../x", "a\nb", "x" * 300, ""):
        await refused(lab, InvalidName, key_file, name=name)
    error = await refused(lab, UnknownCloud, key_file, selection=Selection.parse("gold,silber"))
    assert "did you mean silver?" in error.text("cause")
    for proxy in ("proxy:3128", "https://proxy:3128", "http://proxy", "http://u:secret@proxy:99999"):
        error = await refused(lab, BadProxy, key_file, proxy=proxy)
        assert "secret" not in str(error)
