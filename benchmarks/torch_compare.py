"""Is an update in momentax at least as fast as one in PyTorch with torch.func?

    python benchmarks/torch_compare.py docs/results/torch_compare.json [WIDTH ...]

needs `pip install torch`; the compiled half also a C++ compiler. The same MLP with the same weights, the losses from
the same equations, noise drawn by each, the gradient clipped, Adam with b1 = 0 (PyTorch's writes into the parameters,
and keeps a first moment nevertheless; momentax's makes new parameters, and keeps none); on CPU, as many threads as
there are cores. "compiled" is `torch.compile` of the loss with its gradient, and again of clipping and Adam. For noise
that is handed in, value and gradient of all three losses agree to 1e-4, which is checked before anything is timed.
Ratios are PyTorch's time over momentax's in the same round: above one where momentax is faster.
"""

import math
import os
import sys
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from _formulas import Given, drawn
from _measure import alternated, cores, counts, lowered, ratio, record
from _networks import OPTIMIZER, step_over
from _torch_formulas import Judge, Net
from torch.func import grad_and_value  # pyright: ignore[reportMissingImports]

import momentax as mm

SHAPE, DEPTH, BATCH, ROUNDS = (1, 8, 8), 4, 256, 20
WIDTHS = (128, 512)
WITHIN = 1e-4


def ours(teacher: Any, other: Any, **settings: Any) -> dict[str, Any]:
    """momentax's losses; the other player is the auxiliary to the student, and the student to the auxiliary."""
    losses = mm.moment_match(teacher, other, other, **settings)
    return {"student": losses.student, "aux": losses.aux, "instant": mm.instant(teacher, **settings)}


def copied(net: Any) -> dict[str, torch.Tensor]:
    """The parameters of a `momentax.nn.MLP`, by the names of `Net`."""
    layers = {"inner": net.embedding.inner, "outer": net.embedding.outer, "first": net.first, "last": net.last}
    for i, block in enumerate(net.blocks):
        layers |= {f"modulations.{i}": block.modulation, f"inners.{i}": block.inner, f"outers.{i}": block.outer}
    both = {name: {"weight": layer.weight, "bias": layer.bias} for name, layer in layers.items()}
    return {f"{name}.{kind}": as_tensor(leaf) for name, leaves in both.items() for kind, leaf in leaves.items()}


def as_tensor(leaf: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(leaf))


def check(judge, nets, models, x, key) -> None:
    """Demands the same values and gradients of both sides, in float32."""
    noise = drawn(key, x)
    theirs = as_tensor(x), [as_tensor(part) for part in noise]
    model, teacher, other = models
    for name, loss in ours(teacher, other, rollout=Given()).items():
        value, grads = eqx.filter_jit(eqx.filter_value_and_grad(loss))(model, x, key, noise)
        gradient, number = grad_and_value(getattr(judge, name))(*nets, *theirs)
        np.testing.assert_allclose(number.numpy(), value, rtol=WITHIN)
        for part, leaf in copied(grads.net).items():
            wanted = gradient[part]
            np.testing.assert_allclose(leaf, wanted, rtol=WITHIN, atol=WITHIN * float(wanted.abs().max()))


def torch_step(judge, name, nets, x, compiled):
    """One update of a copy of the first player."""
    first, teacher, other = nets
    model = {name: leaf.clone().requires_grad_() for name, leaf in first.items()}
    optimizer = torch.optim.Adam(model.values(), lr=1e-5, betas=(0.0, 0.99), eps=1e-12)

    def gradient(model, teacher, other, x):
        times, pixels = [torch.rand(len(x)) for _ in range(2)], [torch.randn_like(x) for _ in range(2)]
        return grad_and_value(getattr(judge, name))(model, teacher, other, x, times + pixels)

    def move():
        torch.nn.utils.clip_grad_norm_(model.values(), 1.0)
        optimizer.step()

    taken, moved = (torch.compile(gradient), torch.compile(move)) if compiled else (gradient, move)

    def step():
        grads, value = taken({name: leaf.detach() for name, leaf in model.items()}, teacher, other, x)
        for name, leaf in model.items():
            leaf.grad = grads[name]
        moved()
        return value.item()

    return step


def jax_step(loss, model, x, key):
    """One update, compiled, of the model as it is; and its operations."""
    args = loss, model, OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array)), x, key
    compiled = lowered(step_over(), *args).compile()
    arrays = eqx.filter(args, eqx.is_array)
    return lambda: compiled(arrays), counts(compiled)["flops"]


def rows_of(width, rounds, compiled):
    """A row for each loss."""
    keys = jax.random.split(jax.random.key(0), 4)
    models = [mm.Denoiser(mm.nn.MLP(SHAPE, width=width, depth=DEPTH, key=key)) for key in keys[:3]]
    nets, judge = [copied(model.net) for model in models], Judge(Net(math.prod(SHAPE), width, DEPTH))
    x = jax.random.normal(keys[3], (BATCH, *SHAPE), jnp.float32)
    check(judge, nets, models, x, keys[3])
    for name, loss in ours(*models[1:]).items():
        mine, flops = jax_step(loss, models[0], x, keys[3])
        runs = {"momentax": mine, "eager": torch_step(judge, name, nets, as_tensor(x), compiled=False)}
        if compiled:
            runs["compiled"] = torch_step(judge, name, nets, as_tensor(x), compiled=True)
        times = alternated(runs, rounds)
        row: dict[str, Any] = {"width": width, "update": name, "seconds": min(times["momentax"]), "flops": flops}
        yield row | {kind: ratio(times[kind], times["momentax"]) for kind in runs if kind != "momentax"}


def main(target: str, *widths: str, rounds: int = ROUNDS, compiled: bool = True) -> None:
    """Prints the table row by row and writes it, with what made it."""
    torch.set_num_threads(cores())
    rows, kinds = [], ("eager", "compiled") if compiled else ("eager",)
    print(f"{'width':>6} {'update':<10}{'momentax, s':>12}" + "".join(f"{kind:>10}{'best':>8}" for kind in kinds))
    for width in map(int, widths or WIDTHS):
        for row in rows_of(width, rounds, compiled):
            rows.append(row)
            print(f"{width:>6} {row['update']:<10}{row['seconds']:>12.5f}", end="")
            print("".join(f"{row[kind]['median']:>10.2f}{row[kind]['best']:>8.2f}" for kind in kinds), flush=True)
            told = {"torch": torch.__version__, "batch": BATCH, "rounds": rounds, "rows": rows}
            record(target, " ".join(["torch_compare.py", target, *widths]), **told)


if __name__ == "__main__":
    main(*sys.argv[1:])
