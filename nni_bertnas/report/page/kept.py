"""What the page needs and takes seconds to make, kept in the study's folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nni_bertnas.artifacts import write_whole

FOLDER = "report"  # in the study's own


def kept(root: Path, name: str, mark: str, make: Callable[[], Any]) -> Any:
    """Plain data, read where they were made from the same before, else made and written; older ones are removed.

    Args:
        root: The study's folder.
        name: Of the data.
        mark: A fingerprint of all that they are made from.
        make: Makes them.
    """
    path = root / FOLDER / f"{name}-{mark}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass  # not there, or half there: it is made anew
    found = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(found))
    for old in path.parent.glob(f"{name}-*.json"):
        if old != path:
            old.unlink(missing_ok=True)
    return found
