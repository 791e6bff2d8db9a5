from pathlib import Path

import pytest

from tests.contracts.seeded_replica import SeededReplicaContract
from tests.fakes.chain_rig import ChainRig
from tests.hyperv_host_agent.store.test_memory_store_contract import MemoryRig


class TestSeededChainReplica(SeededReplicaContract):
    @pytest.fixture
    def rig(self, quick_path: Path) -> ChainRig:
        return ChainRig(quick_path / "store")


class TestSeededMemoryReplica(SeededReplicaContract):
    @pytest.fixture
    def rig(self) -> MemoryRig:
        return MemoryRig()
