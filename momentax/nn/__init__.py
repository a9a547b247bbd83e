"""Reference networks: Equinox modules `net(z, t, cond=None)` of one example, where `t` is the log-SNR."""

from ._mlp import MLP as MLP
from ._unet import UNet as UNet
