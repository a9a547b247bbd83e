"""What a checkpoint says of itself, under a checksum of its own."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ._damage import DamageError
from ._leaf import Kind
from ._pieces import Pieces, as_json, from_json
from ._store import read_manifest

VERSION = 1


class Manifest(NamedTuple):
    """The caller's own values, and every array's place, kind and checksums."""

    config: dict[str, Any] | None
    notes: dict[str, Any] | None
    figure: float | None
    kinds: dict[str, Kind]
    pieces: dict[str, Pieces]


def plain(name: str, value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A mapping as it comes back from JSON: tuples as lists, keys as strings."""
    if value is None:
        return None
    try:
        return json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"needs {name} as a mapping of JSON's types; got {error}; do convert its values") from error


def sealed(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON."""
    body = {
        "version": VERSION,
        "config": manifest.config,
        "config_sha256": _hash(manifest.config),
        "notes": manifest.notes,
        "figure": manifest.figure,
        "arrays": [
            {"path": path, **kind._asdict(), "pieces": as_json(manifest.pieces[path])}
            for path, kind in manifest.kinds.items()
        ],
    }
    return {"crc32": _crc(body), "manifest": body}


def opened(path: Path) -> Manifest:
    """The manifest of the checkpoint in a folder.

    Raises:
        DamageError: where it is not what was written.
        ValueError: where a later version of the library wrote it.
    """
    try:
        found = read_manifest(path)
        body, checksum = found["manifest"], found["crc32"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DamageError(f"its manifest cannot be read ({type(error).__name__}: {error})") from error
    if _crc(body) != checksum:
        raise DamageError("its manifest was altered")
    if body["version"] != VERSION:
        raise ValueError(
            f"needs a checkpoint of format {VERSION}; got format {body['version']} in {path};"
            " do install the momentax that wrote it"
        )
    arrays = {array["path"]: array for array in body["arrays"]}
    return Manifest(
        body["config"],
        body["notes"],
        body["figure"],
        {name: Kind(tuple(array["shape"]), array["dtype"], array["key"]) for name, array in arrays.items()},
        {name: from_json(array["pieces"]) for name, array in arrays.items()},
    )


def _hash(config: Any) -> str:
    return hashlib.sha256(_canonical(config)).hexdigest()


def _crc(body: Any) -> int:
    return zlib.crc32(_canonical(body))


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
