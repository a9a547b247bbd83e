"""Writes the small networks and tables of this folder with diffusers, and what PyTorch computes with them.

python tests/diffusers/make.py        # torch 2.13.0, diffusers 0.42.1
"""

import inspect
import json
import pathlib

import diffusers
import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel

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


def tables() -> None:
    """Some steps of every class that has betas, as it is made without a word; one needs torchsde (0.2.6)."""
    steps, found = [0, 250, 500, 750, 999], {}
    for name in sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and "Flax" not in name):
        made = getattr(diffusers, name)
        if "beta_schedule" in inspect.signature(made.__init__).parameters:
            found[name] = [float(f"{value:.7g}") for value in made().alphas_cumprod[steps].double().tolist()]
    (HERE / "tables.json").write_text(json.dumps({"steps": steps, "tables": found}, indent=1) + "\n")


def odd_sides() -> None:
    """A network with text on sides that do not halve, with and without a mask of the text."""
    torch.manual_seed(1)
    net = UNet2DConditionModel(
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 4, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=3,
    ).eval()
    net.save_pretrained(HERE / "text")
    z, t, text = torch.randn(2, 1, 7, 10), torch.tensor([33.0, 700.0]), torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    with torch.no_grad():
        output = net(z, t, text).sample
        masked = net(z, t, text, encoder_attention_mask=mask).sample
    arrays = {"z": z, "t": t, "text": text, "mask": mask, "output": output, "masked": masked}
    np.savez(HERE / "text.npz", allow_pickle=False, **{name: array.numpy() for name, array in arrays.items()})


if __name__ == "__main__":
    main()
    tables()
    odd_sides()
