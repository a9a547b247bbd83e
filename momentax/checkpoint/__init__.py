"""Checkpoints that are whole or not there, on orbax, and the losses beside them."""

from ._losses import append_losses as append_losses
from ._losses import cut_losses as cut_losses
from ._losses import read_losses as read_losses
from ._restore import Restored as Restored
from ._restore import restore as restore
from ._save import save as save
from ._saving import Saving as Saving
from ._steps import best as best
from ._steps import latest as latest
from ._steps import steps as steps
