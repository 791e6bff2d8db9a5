"""One line per figure, for people and for scripts."""

import json


def line(name: str, ours: float, peer: float, peer_name: str, unit: str) -> None:
    """`ratio` is ours divided by the peer's; for seconds and bytes below 1 is better."""
    figures = {
        "name": name,
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "peer_name": peer_name,
        "ratio": round(ours / peer, 3),
        "unit": unit,
    }
    print("BENCH " + json.dumps(figures), flush=True)
