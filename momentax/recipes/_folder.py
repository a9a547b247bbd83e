"""The output folder: every file is complete or absent."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import equinox as eqx

from ._program import command


class Folder:
    """A folder of weights, JSON and pictures. What is replaced is replaced at once, when the new file is whole."""

    def __init__(self, path: Path):
        self.path = path

    def create(self, flag: str = "--output") -> None:
        """Makes the folder that a flag names, and proves that it can be written to."""
        if self.path.is_file():
            raise NotADirectoryError(f"needs a folder for {flag}; got the file {self.path}; name another")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise type(error)(
                f"needs a folder it may write to; got {self.path} ({error.strerror}); name another by {flag}"
            ) from error

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).is_file()

    def read_json(self, name: str, *keys: str) -> Any:
        """What `write_json` wrote; of an object with these keys at least, if any are named."""
        path = self.path / name
        if not path.is_file():
            raise FileNotFoundError(f"needs {path}; got none; run `{command('distill', self.path)}` first")
        try:
            value = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(
                f"needs JSON in {path}; got {error}; delete the file and run the distillation again"
            ) from error
        if keys and not (isinstance(value, dict) and set(keys) <= set(value)):
            raise ValueError(
                f"needs an object with {', '.join(keys)} in {path}; got {_shown(value)};"
                " delete the file and run the distillation again"
            )
        return value

    def beside(self, name: str) -> str:
        """Which folders beside this one have such a file, for an error that asks for another one; empty for none."""
        others = sorted(str(path.parent) for path in self.path.parent.glob(f"*/{name}"))
        return f": {', '.join(others)}" if others else ""

    def remove(self, name: str) -> None:
        """Takes a file away, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        """Plain values, indented, keys in their order."""
        self.write(name, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))

    def read_weights(self, name: str, like: Any) -> Any:
        """The module that `write_weights` wrote, into one of the same structure."""
        path = self.path / name
        if not path.is_file():
            raise FileNotFoundError(f"needs the weights {path}; got none; do run the distillation again")
        try:
            return eqx.tree_deserialise_leaves(path, like)
        except (ValueError, RuntimeError, EOFError, TypeError) as error:
            raise ValueError(
                f"needs whole weights of this network in {path}; got a file that is damaged, or of another network;"
                " delete it and train again"
            ) from error

    def write_weights(self, name: str, module: Any) -> None:
        """Every array of an Equinox module."""
        self.write(name, lambda file: _serialised(file, module))

    def copy(self, name: str, files: dict[str, Path]) -> None:
        """A folder of copies, by their paths in it; whole or absent."""
        temporary = Path(tempfile.mkdtemp(dir=self.path, prefix=f".{name}."))
        try:
            for place, source in files.items():
                (temporary / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, temporary / place)
            temporary.chmod(0o755)
            shutil.rmtree(self.path / name, ignore_errors=True)
            os.replace(temporary, self.path / name)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def write(self, name: str, fill: Callable[[IO[bytes]], Any]) -> None:
        """A file, filled beside its place and then moved there."""
        handle, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, self.path / name)
        except BaseException:
            os.unlink(temporary)
            raise


def _serialised(file: IO[bytes], module: Any) -> None:
    try:
        eqx.tree_serialise_leaves(file, module)
    except RuntimeError as error:
        # Of a leaf in a part in a module, each with the next as its cause; at the end is what the system said.
        while error.__cause__ is not None:
            error = error.__cause__
        raise error from None


def _shown(value: Any) -> str:
    return f"one with {', '.join(value) or 'nothing'}" if isinstance(value, dict) else type(value).__name__
