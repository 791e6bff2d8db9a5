"""The service Vaults."""

from dataclasses import dataclass
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from coordinator.inventory.mutation import Mutation
from coordinator.vault.service import Vaults
from twinsite.api.coordinator.v1 import admin_pb2, admin_pb2_grpc
from twinsite.server import Mount


@dataclass(frozen=True, slots=True)
class Shown:
    """What `Show` tells besides the vault itself."""

    root_spki: str  # SHA-256, hex
    enrollment_address: str
    link_address: str


class VaultsServicer(admin_pb2_grpc.VaultsServicer):
    def __init__(self, vaults: Vaults, shown: Shown) -> None:
        self._vaults, self._shown = vaults, shown

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
            root_spki_sha256=self._shown.root_spki,
            enrollment_address=self._shown.enrollment_address,
            link_address=self._shown.link_address,
        )


def vaults_mount(vaults: Vaults, shown: Shown) -> Mount:
    servicer = VaultsServicer(vaults, shown)
    return Mount(
        admin_pb2.DESCRIPTOR.services_by_name["Vaults"],
        lambda server: admin_pb2_grpc.add_VaultsServicer_to_server(servicer, server),
    )
