"""The run that a folder holds and that has no report yet: what it was told, and which of its phases are done."""

import dataclasses
from typing import Any

from ._data import Dataset
from ._folder import Folder
from ._formats import require
from ._settings import Distill, Run, as_json, difference, from_json
from ._source import found_at, place_of
from ._teacher import identity

tyro = require("tyro")
_FILE = "run.json"
_KEYS = ("configuration", "data", "checkpoint_every", "phases")


def unfinished(folder: Folder) -> dict[str, Any] | None:
    """What `begin` wrote and `completed` added to, if there is any."""
    if not folder.has(_FILE):
        return None
    run = folder.read_json(_FILE, *_KEYS)
    from_json(run["configuration"])
    return run


def begin(folder: Folder, config: Run, dataset: Dataset) -> dict[str, Any]:
    """Writes down what is about to be made."""
    run = {
        "configuration": as_json(config),
        "data": identity(dataset),
        "place": place_of(config.data),
        "checkpoint_every": config.checkpoint_every,
        "phases": {},
    }
    folder.write_json(_FILE, run)
    return run


def place(run: dict[str, Any]) -> str:
    """Where the data of the run are, from whichever folder it is asked."""
    data = run["configuration"]["data"]
    return found_at([run.get("place", data), data])


def completed(folder: Folder, run: dict[str, Any], phase: str, told: dict[str, Any]) -> None:
    """Adds that a phase is done, and what is to be told of it."""
    run["phases"][phase] = told
    folder.write_json(_FILE, run)


def end(folder: Folder) -> None:
    """The run is finished, or gone."""
    folder.remove(_FILE)


def resumed(folder: Folder, run: dict[str, Any] | None, config: Distill, arguments: list[str]) -> Distill:
    """The configuration of the unfinished run, as long as the flags that were given say nothing else.

    Raises:
        ValueError: where there is no such run, or a flag differs.
    """
    if config.overwrite:
        raise ValueError("needs --resume or --overwrite; got both; do drop one")
    if run is None:
        raise ValueError(
            f"needs an unfinished run in {folder.path} to --resume; got {_instead(folder)};"
            f" drop --resume, or name the --output of the run{folder.beside(_FILE)}"
        )
    stored = from_json(run["configuration"])
    names = [field.name for field in dataclasses.fields(Distill)]
    default = Distill(**{name: getattr(stored, name) for name in names})
    default = dataclasses.replace(default, checkpoint_every=run["checkpoint_every"], output=config.output)
    asked = tyro.cli(Distill, args=arguments, default=default)
    differences = difference(as_json(asked), run["configuration"])
    if differences:
        raise ValueError(
            f"needs the flags of the unfinished run in {folder.path} with --resume; got {', '.join(differences)};"
            " do drop them, or choose another --output, or --overwrite without --resume"
        )
    # The folder's own copy is as good as where it came from, which may be gone.
    return dataclasses.replace(asked, teacher=None) if folder.has("teacher.json") else asked


def check_same(folder: Folder, run: dict[str, Any], config: Run, dataset: Dataset) -> None:
    """Demands that the unfinished run is of this configuration and this data."""
    differences = difference(as_json(config), run["configuration"])
    if differences:
        raise ValueError(
            f"needs a folder without an unfinished run of another configuration; got {folder.path}, whose run differs"
            f" in {', '.join(differences)}; do go on with that run by --resume, choose another --output, or --overwrite"
            " (a finished teacher is kept)"
        )
    if identity(dataset) != run["data"]:
        raise ValueError(
            f"needs the data that the unfinished run in {folder.path} began with; got other contents in {config.data};"
            " do restore the data, choose another --output, or --overwrite"
        )


def _instead(folder: Folder) -> str:
    return "a finished one" if folder.has("report.json") else "none"
