"""The service Vaults."""

from collections.abc import Callable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from coordinator.inventory.mutation import Mutation
from coordinator.vault.service import Vaults
from twinsite.api.coordinator.v1 import admin_pb2, admin_pb2_grpc
from twinsite.server import Mount


class VaultsServicer(admin_pb2_grpc.VaultsServicer):
    """`root_spki` is the SHA-256 of the root's key in hex; the addresses are host:port as others reach them."""

    def __init__(
        self, vaults: Vaults, *, root_spki: str, enrollment: Callable[[], str], link: Callable[[], str]
    ) -> None:
        self._vaults, self._root_spki, self._enrollment, self._link = vaults, root_spki, enrollment, link

    async def Create(self, request: admin_pb2.CreateVaultRequest, context: Any) -> admin_pb2.JobRef:
        return await self._vaults.create(Mutation.of(context, "vault.create"), request.name, request.region)

    async def Show(self, request: admin_pb2.Empty, context: Any) -> admin_pb2.Vault:
        del request, context
        vault = await self._vaults.show()
        return admin_pb2.Vault(
            id=vault.id,
            name=vault.name,
            region=vault.region,
            state=vault.state,
            created=Timestamp(seconds=int(vault.created)),
            root_spki_sha256=self._root_spki,
            enrollment_address=self._enrollment(),
            link_address=self._link(),
        )


def vaults_mount(servicer: VaultsServicer) -> Mount:
    return Mount(
        admin_pb2.DESCRIPTOR.services_by_name["Vaults"],
        lambda server: admin_pb2_grpc.add_VaultsServicer_to_server(servicer, server),
    )
