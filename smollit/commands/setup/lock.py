"""`make lock`: pip's report of an installation -> requirements with hashes, as `pip install --require-hashes -r` reads.

Run: pip install --dry-run --ignore-installed --quiet --report - . | python -m smollit.commands.setup.lock
"""

import json
import sys
from collections.abc import Iterator
from typing import Any


def locked(report: dict[str, Any]) -> Iterator[str]:
    """One line per package of an index, by name; smollit itself is left out, since a folder has no hash."""
    for item in sorted(report["install"], key=lambda item: item["metadata"]["name"].lower()):
        hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
        if "sha256" in hashes:
            yield f"{item['metadata']['name']}=={item['metadata']['version']} --hash=sha256:{hashes['sha256']}"


if __name__ == "__main__":
    print("\n".join(locked(json.load(sys.stdin))))
