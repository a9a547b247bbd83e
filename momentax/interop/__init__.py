"""Weights of other ecosystems: safetensors for any Equinox module, networks from diffusers' folders."""

from ._folder import denoiser_from_diffusers as denoiser_from_diffusers
from ._folder import from_diffusers as from_diffusers
from ._safetensors import load_safetensors as load_safetensors
from ._safetensors import save_safetensors as save_safetensors
from ._scheduler import schedule_from_diffusers as schedule_from_diffusers
