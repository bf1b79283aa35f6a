"""How far the preparation of a text corpus is: journal.json, in the folder that is not complete yet.

It is replaced as a whole, after what it describes has been made durable. So whenever a process is killed, the newest
journal describes a beginning of the corpus that is on the disk; what the files hold behind it is cut off.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.shards import write_durably

NAME = "journal.json"


@dataclass
class Journal:
    """One state. Raises nothing by itself: what it says is checked against the files by those who go on from it.

    tokenizer: its digest, and the version of the library that made the tokens; trained_on: what a BPE was trained on.
    position: of the source (sources.Position). exact: whether every token's bytes are known so far.
    splits: documents, bytes, and the writers' states (ShardWriter.sync) by split.
    """

    tokenizer: dict[str, Any]
    trained_on: dict[str, int]
    position: list[int]
    exact: bool
    splits: dict[str, dict[str, Any]]

    def save(self, folder: Path) -> None:
        """Replace the journal, durably."""
        write_durably(folder / NAME, json.dumps(asdict(self)).encode())


def load(folder: Path) -> Journal | None:
    """The journal of a folder; None where there is none that can be read."""
    try:
        return Journal(**json.loads((folder / NAME).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
