import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Options:
    """The settings of a `config.json`, each to be taken once; one that is unknown or unsupported is an error."""

    def __init__(self, values: Mapping[str, Any], source: Any):
        self._values = {name: value for name, value in values.items() if not name.startswith("_")}
        self._source = source

    def take(self, name: str, default: Any, *supported: Any) -> Any:
        """The option's value, or its default; where supported values are listed, it must be one of them."""
        value = self._values.pop(name, default)
        if supported and value not in supported:
            raise ValueError(
                f"needs {name} in {list(supported)}; got {value!r} in {self._source}; do choose another checkpoint"
            )
        return value

    def finish(self) -> None:
        """Demands that nothing is left."""
        if self._values:
            raise ValueError(
                f"needs options that are known; got {sorted(self._values)} in {self._source};"
                " do remove them where they change nothing"
            )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"needs JSON; got {path}, which fails with '{error}'; fetch it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"needs a JSON object; got a {type(values).__name__} in {path}; fetch it again")
    return values
