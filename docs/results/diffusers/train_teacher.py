"""Trains a class-conditional UNet2DModel on Fashion-MNIST with PyTorch and diffusers, and saves it as diffusers does.

Needs `torch==2.13.0`, `diffusers==0.42.1`, `safetensors` and Debian's `dataset-fashion-mnist`:

    python docs/results/diffusers/train_teacher.py runs/diffusers-teacher

v-prediction on the cosine table of a thousand steps, unweighted loss, Adam with a cosine decay, a moving average of
the weights. A tenth of the labels is row 10, "none".
"""

import argparse
import gzip
import pathlib

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

DATA = pathlib.Path("/usr/share/datasets/fashion-mnist")


def images_and_labels():
    """Images [n, 1, 28, 28] in [-1, 1] and labels 0..9."""
    images = np.frombuffer(gzip.decompress((DATA / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((DATA / "train-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    x = torch.from_numpy(images.reshape(-1, 1, 28, 28).astype(np.float32) / 127.5 - 1)
    return x, torch.from_numpy(labels.astype(np.int64))


def network():
    """0.69 M parameters; attention at 7 by 7."""
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=11,
    )


def train(updates, batch, rate, seed):
    """The average network and its noise scheduler."""
    torch.manual_seed(seed)
    x, y = images_and_labels()
    net, average = network(), network()
    average.load_state_dict(net.state_dict())
    scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, updates, pct_start=0.03, cycle_momentum=False)
    for n in range(updates):
        chosen = torch.randint(len(x), (batch,))
        clean, noise, steps = x[chosen], torch.randn(batch, 1, 28, 28), torch.randint(1000, (batch,))
        labels = torch.where(torch.rand(batch) < 0.1, 10, y[chosen])
        output = net(scheduler.add_noise(clean, noise, steps), steps, class_labels=labels).sample
        loss = torch.nn.functional.mse_loss(output, scheduler.get_velocity(clean, noise, steps))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay.step()
        keep = min(0.999, (1 + n) / (10 + n))
        for mean, new in zip(average.parameters(), net.parameters(), strict=True):
            mean.data.lerp_(new.data, 1 - keep)
        if n % 100 == 0:
            print(f"{n} {loss.item():.4f}", flush=True)
    return average, scheduler


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--updates", type=int, default=7000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    unet, noise_scheduler = train(args.updates, args.batch, args.rate, args.seed)
    DDPMPipeline(unet=unet, scheduler=noise_scheduler).save_pretrained(args.folder)
