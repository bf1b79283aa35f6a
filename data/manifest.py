"""The manifest of a corpus: one JSON file that says what is in the folder, where it came from and how to check it.

format, kind        "sinkless-corpus-2"; "text" or "bigram_backcopy"
hash                the corpus hash: SHA-256 over what training sees (tokenizer, dtype, shards; or the transition table)
source, options     what was read (files, identity, Python version for stdlib) and how
tokenizer           kind, vocab_size, sha256, end_of_text, what a BPE was trained on
dtype, splits       for train and validation: documents, tokens, bytes of text, shards with sizes and checksums, and
                    starts: int64, for each document the number of text tokens before it
files               sizes and checksums of every other file
order               name and version of the algorithm that turns (seed, sample) into a window
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from data import order
from data.shards import Shard, write_durably
from errors import InputError

NAME = "manifest.json"
FORMAT = "sinkless-corpus-2"
STAMP = "verified.json"


def order_entry() -> dict[str, Any]:
    """The order algorithm as a manifest names it."""
    return {"algorithm": order.ALGORITHM, "version": order.VERSION}


def corpus_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 over the parts that decide what a model sees; where the text came from is not among them."""
    seen = {key: manifest.get(key) for key in ("format", "kind", "tokenizer", "dtype", "splits", "files", "task")}
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Add the corpus hash and write the manifest; it comes last, so that its presence means a whole folder."""
    manifest["hash"] = corpus_hash(manifest)
    write_durably(folder / NAME, (json.dumps(manifest, indent=2) + "\n").encode())


def read(folder: Path) -> dict[str, Any]:
    """Read and check a manifest: format, its own hash, and this version's order algorithm."""
    path = folder / NAME
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{folder} is no prepared corpus: it has no {NAME}") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged (not JSON: {error}); {advice(folder)}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise InputError(f"{path} has format {found!r}, this version reads {FORMAT!r}; {advice(folder)}")
    if manifest.get("hash") != corpus_hash(manifest):
        raise InputError(f"{path} is damaged (its hash does not fit its content); {advice(folder)}")
    if manifest["order"] != order_entry():
        raise InputError(f"{path} was prepared for order {manifest['order']}, this version has {order_entry()}")
    return manifest


def advice(folder: Path) -> str:
    """What to do about a damaged corpus."""
    return f"delete {folder} and prepare it again"


def shards(manifest: dict[str, Any], split: str, kind: str = "shards") -> list[Shard]:
    """The shards of a split; kind "starts": of its documents' starts."""
    return [Shard(**entry) for entry in manifest["splits"][split][kind]]


def listed_files(manifest: dict[str, Any]) -> list[Shard]:
    """Every file with a checksum (shards and others; `tokens` is 0 for the others)."""
    kinds = [(split, kind) for split in manifest.get("splits", {}) for kind in ("shards", "starts")]
    files = [shard for split, kind in kinds for shard in shards(manifest, split, kind)]
    return files + [Shard(tokens=0, **entry) for entry in manifest["files"]]
