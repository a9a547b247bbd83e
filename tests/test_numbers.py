"""Every public numeric argument: what is no number in its range is refused, before anything is computed."""

import collections.abc
import dataclasses
import inspect
import math
import tempfile
import typing
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

import momentax as mm
from momentax import checkpoint, interop, metrics, nn

KEY, X, AT = jax.random.key(0), jnp.ones((2, 2), jnp.float32), jnp.zeros((), jnp.float32)
ROWS = np.random.default_rng(0).standard_normal((9, 3))
INF, NAN = math.inf, math.nan


def _numeric(annotation):
    """Whether it is int, float, or made of them."""
    if typing.get_origin(annotation) is collections.abc.Callable:
        return False
    return annotation in (int, float) or any(map(_numeric, typing.get_args(annotation)))


def _annotations(item: Any):
    """By parameter; those that a field's converter hides are the field's own."""
    parameters = inspect.signature(item).parameters.values()
    fields = {field.name: field.type for field in dataclasses.fields(item)} if dataclasses.is_dataclass(item) else {}
    return {p.name: (fields.get(p.name, p.annotation), p.default) for p in parameters}


def _arguments():
    for module in (mm, nn, metrics, interop, checkpoint):
        for name, item in vars(module).items():
            own = getattr(item, "__module__", "").startswith(module.__name__)
            if not name.startswith("_") and own and (inspect.isfunction(item) or inspect.isclass(item)):
                for argument, (annotation, default) in _annotations(item).items():
                    if _numeric(annotation):
                        yield f"{name}.{argument}", (annotation, default)


def _identity(z, logsnr, cond=None):
    return z


def _abstract(make):
    """A network's initial weights are not computed."""
    return lambda **settings: eqx.filter_eval_shape(lambda: make(**settings))


def _weight(weight):
    return lambda **settings: weight(AT, X, **settings)


def _adam(**settings):
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        _, state = (adam := optax.scale_by_adam()).update(X, adam.init(X))
        return mm.adam_preconditioner(state, **settings)


def _estimate(**settings):
    with jax.numpy_dtype_promotion("standard"):
        return mm.estimate_preconditioner(lambda model, x, key, cond: jnp.sum(model * x), X, [X], KEY, **settings)


def _restore(**settings):
    checkpoint.save(folder := tempfile.mkdtemp(dir="."), 0, {"x": ROWS}).wait()
    return checkpoint.restore(folder, {"x": ROWS}, **settings)


def _save(**settings):
    checkpoint.save(tempfile.mkdtemp(dir="."), **{"step": 1, "tree": {"x": ROWS}} | settings).wait()


def _unet(**settings):
    return nn.UNet(**{"channels": 2, "width": 8, "multipliers": (1, 2), "key": KEY} | settings)


CALLS = {
    "CosineSchedule": mm.CosineSchedule,
    "DiscreteSchedule": mm.DiscreteSchedule,
    "FlowSchedule": mm.FlowSchedule,
    "KarrasSchedule": mm.KarrasSchedule,
    "Rollout": mm.Rollout,
    "adam_preconditioner": _adam,
    "adaptive_weight": _weight(mm.adaptive_weight),
    "ancestral_sampler": lambda **settings: mm.ancestral_sampler(_identity, **settings),
    "central_difference": lambda **settings: mm.central_difference(lambda x: x, X, X, **settings),
    "clipped": lambda **settings: mm.clipped(_identity, **settings),
    "edm_weight": _weight(mm.edm_weight),
    "estimate_preconditioner": _estimate,
    "guided": lambda **settings: mm.guided(_identity, **settings),
    "lora": lambda **settings: mm.lora(eqx.nn.Linear(2, 2, key=KEY), **{"rank": 1, "key": KEY} | settings),
    "min_snr_weight": _weight(mm.min_snr_weight),
    "noisier": mm.noisier,
    "paper_optimizer": lambda **settings: mm.paper_optimizer(
        **{"learning_rate": 1e-3, "updates": 2000, "warmup": 1} | settings
    ),
    "predict_edm": lambda **settings: mm.predict_edm(lambda z, t, cond: z, X, AT, None, None, **settings),
    "resolution_shift": lambda **settings: mm.resolution_shift(**{"noise_d": 64, "image_d": 64} | settings),
    "shifted": lambda **settings: mm.shifted(mm.CosineSchedule(), **settings),
    "snr_weight": _weight(mm.snr_weight),
    "stochastic": mm.stochastic,
    "truncated": lambda **settings: mm.truncated(mm.CosineSchedule(), **settings),
    "truncated_snr_weight": _weight(mm.truncated_snr_weight),
    "v_weight": _weight(mm.v_weight),
    "value_and_grad": lambda **settings: mm.value_and_grad(mm.denoising_loss(), **settings),
    "DiT": _abstract(lambda **settings: nn.DiT(**{"shape": (2, 4, 4), "width": 8, "key": KEY} | settings)),
    "FourierFeatures": lambda **settings: nn.FourierFeatures(**{"size": 4, "key": KEY} | settings),
    "LogSNRFeatures": nn.LogSNRFeatures,
    "MLP": _abstract(lambda **settings: nn.MLP(**{"shape": (2,), "width": 8, "key": KEY} | settings)),
    "ResidualStyle": _abstract(lambda **settings: _unet(style=nn.UNetStyle(nn.ResidualStyle(**settings)))),
    "StepFeatures": lambda **settings: nn.StepFeatures(**{"size": 4, "flipped": True} | settings),
    "UNet": _abstract(_unet),
    "UNetStyle": _abstract(lambda **settings: _unet(style=nn.UNetStyle(residual_down=False, **settings))),
    "UViT": _abstract(lambda **settings: nn.UViT(**{"channels": 2, "width": 8, "key": KEY} | settings)),
    "kernel_distance": lambda **settings: metrics.kernel_distance(ROWS, ROWS, **settings),
    "precision_recall": lambda **settings: metrics.precision_recall(ROWS, ROWS, **settings),
    "sliced_wasserstein": lambda **settings: metrics.sliced_wasserstein(ROWS, ROWS, **settings),
    "append_losses": lambda **settings: checkpoint.append_losses("run", **{"update": 1, "losses": {}} | settings),
    "cut_losses": lambda **settings: checkpoint.cut_losses("run", **settings),
    "restore": _restore,
    "save": _save,
}

RESULT = "a result, which the library makes and nobody passes"
EXCEPTIONS = {
    "Distilled.k": RESULT,
    "Distilled.shape": RESULT,
    "Distilled.num_classes": RESULT,
    "KernelDistance.value": RESULT,
    "KernelDistance.stderr": RESULT,
    "PrecisionRecall.precision": RESULT,
    "PrecisionRecall.recall": RESULT,
    "Restored.step": RESULT,
    "Restored.figure": RESULT,
    "Saving.step": RESULT,
    "stratified.count": "called by draws alone, with the batch's length",
    "uniform.count": "called by draws alone, with the batch's length",
}

# Of the numbers that are tried, those that are right.
FINITE = {-1, 0}
RIGHT = {
    "CosineSchedule.logsnr_max": FINITE,
    "CosineSchedule.logsnr_min": FINITE,
    "FlowSchedule.logsnr_max": FINITE,
    "FlowSchedule.logsnr_min": FINITE,
    "adam_preconditioner.b2": {0},
    "adam_preconditioner.eps": {0},
    "clipped.limit": {INF},
    "edm_weight.shift": FINITE,
    "estimate_preconditioner.b2": {0},
    "estimate_preconditioner.eps": {0},
    "guided.scale": FINITE,
    "min_snr_weight.gamma": {INF},
    "min_snr_weight.shift": FINITE,
    "noisier.gamma": {0},
    "paper_optimizer.b1": {0},
    "paper_optimizer.b2": {0},
    "paper_optimizer.clip": {INF},
    "paper_optimizer.eps": {0},
    "paper_optimizer.warmup": {0},
    "shifted.shift": FINITE,
    "snr_weight.shift": FINITE,
    "stochastic.eta": {0},
    "truncated.logsnr_max": {*FINITE, INF},
    "truncated.logsnr_min": FINITE,
    "truncated_snr_weight.shift": FINITE,
    "v_weight.shift": FINITE,
    "DiT.depth": {0},
    "DiT.dropout": {0},
    "MLP.depth": {0},
    "StepFeatures.shift": FINITE,
    "UNet.dropout": {0},
    "UNetStyle.down_padding": {0},
    "UViT.blocks": {0},
    "UViT.depth": {0},
    "UViT.dropout": {0},
    "UViT.wavelet": {0},
    "kernel_distance.seed": {0},
    "sliced_wasserstein.seed": {0},
    "append_losses.update": {0},
    "append_losses.losses": {*FINITE, INF, NAN},
    "cut_losses.update": {0},
    "restore.step": {0},
    "save.figure": {*FINITE, INF, NAN},
    "save.step": {0},
}

# Where the number is one of several.
AMONG = {
    "DiscreteSchedule.alphas_cumprod": lambda number: (0.999, number),
    "DiT.shape": lambda number: (number, 4, 4),
    "MLP.shape": lambda number: (number,),
    "UNet.multipliers": lambda number: (1, number),
    "UNetStyle.down_padding": lambda number: (number, 1),
    "UViT.multipliers": lambda number: (1, number),
    "append_losses.losses": lambda number: {"loss": number},
}

ARGUMENTS = dict(_arguments())
CHECKED = sorted(set(ARGUMENTS) - set(EXCEPTIONS))


@pytest.fixture(autouse=True)
def _as_users_run_it(monkeypatch, tmp_path):
    """Without the hook that checks types, in an empty folder."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.chdir(tmp_path)


def _call(name, number):
    owner, argument = name.split(".")
    return CALLS[owner](**{argument: AMONG.get(name, lambda number: number)(number)})


def test_what_is_listed_here_exists():
    assert {*EXCEPTIONS, *RIGHT, *AMONG} <= set(ARGUMENTS)
    assert set(CALLS) == {name.split(".")[0] for name in CHECKED}


@pytest.mark.parametrize("name", CHECKED)
def test_numbers_outside_their_range_and_what_is_none_are_refused(name):
    tried = [NAN, -1, 0, INF, True, np.True_, "1"] + [1.5] * ("float" not in str(ARGUMENTS[name][0]))
    for number in tried:
        if type(number) in (int, float) and number in RIGHT.get(name, ()):
            _call(name, number)
        else:
            with pytest.raises(ValueError, match=r"^\S* ?needs .+; got .+; (?!do )[a-z`]"):
                _call(name, number)


USUAL = {
    "b2": 0.9,
    "eps": 1e-8,
    "alphas_cumprod": 0.5,
    "multipliers": 2,
    "losses": 0.5,
    "scale": 2.0,
    "shift": 0.5,
    "eta": 0.5,
    "gamma": 0.5,
    "learning_rate": 1e-3,
    "step": 0,
}


@pytest.mark.parametrize("name", CHECKED)
def test_numbers_of_numpy_are_numbers_whose_dtype_does_not_spread(name):
    """Which strict promotion would refuse."""
    default = ARGUMENTS[name][1]
    number = default if type(default) in (int, float) else USUAL.get(name.split(".")[1], 2)
    _call(name, np.float64(number) if isinstance(number, float) else np.int64(number))


def test_a_setting_that_only_the_program_sees_passes():
    found = jax.jit(lambda shift: mm.edm_weight(AT, X, shift=shift))(0.5)
    np.testing.assert_allclose(found, mm.edm_weight(AT, X, shift=0.5), rtol=1e-6)
