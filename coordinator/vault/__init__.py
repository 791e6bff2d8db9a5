"""The vault: what everything else belongs to. A coordinator has exactly one, and its identity from its authority."""
