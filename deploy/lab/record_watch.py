"""What a client of the guest sees: its newest record, asked for again and again, and when it was acknowledged.

Run as a file inside a host: `record_watch.py URL FILE`. A line has the instant after the answer came.
"""

import http.client
import json
import sys
import time
import urllib.request

_PAUSE_SECONDS = 0.2


def main(url: str, file: str) -> None:
    with open(file, "a", buffering=1) as lines:  # noqa: PTH123  # no more imports than it needs
        while True:
            try:
                answer = json.loads(urllib.request.urlopen(url, timeout=5).read())  # noqa: S310  # ours
            except (OSError, http.client.HTTPException, ValueError):
                pass  # it boots, or it is gone
            else:
                lines.write(f"{time.time():.3f} {answer['record']}\n")
            time.sleep(_PAUSE_SECONDS)


main(*sys.argv[1:])
