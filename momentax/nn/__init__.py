"""Reference networks: Equinox modules `net(z, t, cond=None, *, key=None)` of one example; `t` is the log-SNR."""

from ._dit import DIT_B as DIT_B
from ._dit import DIT_L as DIT_L
from ._dit import DIT_S as DIT_S
from ._dit import DIT_XL as DIT_XL
from ._dit import DiT as DiT
from ._embedding import FourierFeatures as FourierFeatures
from ._embedding import LogSNRFeatures as LogSNRFeatures
from ._embedding import StepFeatures as StepFeatures
from ._mlp import MLP as MLP
from ._residual import ResidualStyle as ResidualStyle
from ._text import Text as Text
from ._unet import UNet as UNet
from ._unet_style import UNetStyle as UNetStyle
from ._uvit import UVIT_64 as UVIT_64
from ._uvit import UVIT_128 as UVIT_128
from ._uvit import UViT as UViT
