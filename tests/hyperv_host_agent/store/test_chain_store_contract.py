from pathlib import Path

import pytest

from tests.contracts.replica_store import ReplicaStoreContract
from tests.contracts.replica_upkeep import ReplicaUpkeepContract
from tests.fakes.chain_rig import ChainRig


class TestChainStore(ReplicaStoreContract, ReplicaUpkeepContract):
    @pytest.fixture
    def rig(self, quick_path: Path) -> ChainRig:
        return ChainRig(quick_path / "store")
