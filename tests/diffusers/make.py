"""Writes the small pipeline of this folder with diffusers, and what PyTorch computes with it.

python tests/diffusers/make.py        # torch 2.13.0, diffusers 0.42.1
"""

import pathlib

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, UNet2DModel

HERE = pathlib.Path(__file__).parent


def main() -> None:
    """A class-conditional UNet2DModel for 8 by 8 images, its scheduler and its outputs; a DiT, by itself."""
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
        num_class_embeds=11,
    )
    scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    DDPMPipeline(unet=net, scheduler=scheduler).save_pretrained(HERE / "ddpm-pipeline")
    dit = DiTTransformer2DModel(2, 8, in_channels=1, num_layers=1, sample_size=8, patch_size=2, num_embeds_ada_norm=10)
    dit.save_pretrained(HERE / "dit")
    z, t, label = torch.randn(5, 1, 8, 8), torch.tensor([0.0, 10.0, 333.25, 700.0, 999.0]), torch.arange(5) * 2
    with torch.no_grad():
        output = net(z, t, class_labels=label).sample
    alphas = scheduler.alphas_cumprod.double().numpy()
    arrays = {"z": z.numpy(), "t": t.numpy(), "label": label.numpy(), "output": output.numpy()}
    np.savez(HERE / "outputs.npz", allow_pickle=False, alphas_cumprod=alphas, **arrays)


if __name__ == "__main__":
    main()
