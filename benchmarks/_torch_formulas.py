"""The network and the losses in PyTorch, from the same equations: functions of a dictionary of parameters."""

import torch  # pyright: ignore[reportMissingImports]
from torch.func import functional_call, grad, jvp  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

STEPS = 8


class Net(torch.nn.Module):
    """`momentax.nn.MLP` of a batch: its layers by its own names, so that a copy is one of arrays."""

    def __init__(self, size: int, width: int, depth: int):
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(32, width), torch.nn.Linear(width, width)
        self.first, self.last = torch.nn.Linear(size, width), torch.nn.Linear(width, size)
        self.modulations = torch.nn.ModuleList(torch.nn.Linear(width, 2 * width) for _ in range(depth))
        self.inners = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
        self.outers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
        self.register_buffer("frequencies", torch.logspace(-5, 1, 16, base=2.0))

    def forward(self, z, t):
        angles = t[:, None] * self.frequencies
        features = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
        emb = functional.silu(self.outer(functional.silu(self.inner(features))))
        h = self.first(z.flatten(1))
        for modulation, inner, outer in zip(self.modulations, self.inners, self.outers, strict=True):
            scale, shift = modulation(emb).chunk(2, dim=1)
            normal = functional.layer_norm(h, h.shape[1:], eps=1e-5)
            h = h + outer(functional.silu(inner(normal * (1 + scale) + shift)))
        return self.last(functional.silu(h)).reshape(z.shape)


class Judge:
    """The three losses of one architecture: what moves is first."""

    def __init__(self, net: Net):
        self.net, self.buffers = net, dict(net.named_buffers())

    def student(self, student, teacher, aux, x, noise):
        x_tilde, z_s, logsnr = self.rollout(student, x, noise)
        target, average = (self.denoise(params, z_s, logsnr).detach() for params in (teacher, aux))
        return (weight(logsnr) * inner(x_tilde - target, average - target)).mean()

    def aux(self, aux, teacher, student, x, noise):
        x_tilde, z_s, logsnr = self.rollout(student, x, noise)
        x_tilde, target = x_tilde.detach(), self.denoise(teacher, z_s, logsnr).detach()
        average = self.denoise(aux, z_s, logsnr)
        errors = inner(x_tilde - average, x_tilde - average) + inner(target - average, target - average)
        return (weight(logsnr) * errors).mean()

    def instant(self, student, teacher, other, x, noise):
        x_first, z_first, logsnr_first = self.rollout(student, x[::2], [part[::2] for part in noise])
        x_first = x_first.detach()

        def error(teacher):
            miss = x_first - self.denoise(teacher, z_first, logsnr_first)
            return (weight(logsnr_first) * inner(miss, miss)).mean()

        nu = {name: leaf.detach() for name, leaf in grad(error)(teacher).items()}
        x_tilde, z_s, logsnr = self.rollout(student, x[1::2], [part[1::2] for part in noise])
        target, tangent = jvp(lambda teacher: self.denoise(teacher, z_s, logsnr), (teacher,), (nu,))
        return (weight(logsnr) * inner(target.detach() - x_tilde, tangent.detach())).mean()

    def rollout(self, student, x, noise):
        s, delta, eps_t, eps_s = noise
        logsnr_s, logsnr_t = karras(s), karras((s + delta / STEPS).clamp(max=1))
        (alpha_s, sigma_s), (alpha_t, sigma_t) = (scales(logsnr, x) for logsnr in (logsnr_s, logsnr_t))
        z_t = alpha_t * x + sigma_t * eps_t
        x_tilde = self.denoise(student, z_t, logsnr_t)
        log_r = as_pixels(logsnr_t - logsnr_s, x)
        mean = torch.exp(log_r / 2) * sigma_s / sigma_t * z_t - torch.expm1(log_r) * alpha_s * x_tilde
        return x_tilde, (mean + torch.sqrt(-torch.expm1(log_r)) * sigma_s * eps_s).detach(), logsnr_s

    def denoise(self, params, z, logsnr):
        alpha, sigma = scales(logsnr, z)
        return alpha * z - sigma * functional_call(self.net, params | self.buffers, (z, logsnr))


def karras(t):
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return -14 * torch.log(t * high + (1 - t) * low)


def scales(logsnr, x):
    return as_pixels(torch.sigmoid(logsnr).sqrt(), x), as_pixels(torch.sigmoid(-logsnr).sqrt(), x)


def weight(logsnr):
    return 4 + torch.exp(logsnr)


def inner(a, b):
    return (a * b).flatten(1).sum(1)


def as_pixels(values, x):
    return values.reshape(-1, *[1] * (x.ndim - 1))
