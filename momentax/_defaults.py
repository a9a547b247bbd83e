r"""What a teacher asks for where nothing else is said: the schedule of its rollouts, and the weight of its moments.

The error of $\hat x$ is the network's own, magnified by $|\partial\hat x/\partial net|$. For x, v, a flow's velocity
and EDM's F that is one at most; for the noise it is $\sigma/\alpha$, and for the score $\sigma^2/\alpha$: without
bound as the signal vanishes. So the moments of such a teacher weigh less at high noise, and its rollouts begin where
$1/\alpha$ is still moderate.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

from ._denoiser import Denoiser, predict_eps, predict_score, predict_x, underlying
from ._schedule import AbstractSchedule, KarrasSchedule, ends, truncated
from ._weight import flat_weight, min_snr_weight, snr_weight, v_weight

NOISIEST = -10.2
r"""The least log-SNR at which a network that predicts the noise is asked: DDPM's linear table ends there."""

_TOLERANCE = 0.1


def default_schedule(denoiser: Callable[..., Any]) -> AbstractSchedule:
    r"""The schedule of rollouts and samplers that name none: the one that the denoiser was trained under.

    Of a denoiser that predicts the noise or the score, the part with $\ell \ge -10.2$: beyond, $\hat x$ is the
    network's error times $1/\alpha > 160$. Of a denoiser that does not tell, `KarrasSchedule()`.
    """
    trained = trained_under(denoiser)
    if trained is None:
        return KarrasSchedule()
    too_noisy = magnifies(denoiser) and ends(trained)[0] < NOISIEST
    return truncated(trained, NOISIEST) if too_noisy else trained


def default_weight(teacher: Callable[..., Any]) -> Callable[..., Any]:
    r"""The weight w(s) of moment matching that fits what the teacher predicts.

    `flat_weight`; of a teacher that predicts the noise or the score `min_snr_weight`, $\min(e^\ell, 1)$, the inverse of
    what its errors are magnified by, squared.
    """
    return min_snr_weight if magnifies(teacher) else flat_weight


def default_denoising_weight(model: Callable[..., Any]) -> Callable[..., Any]:
    """The weight that trains a denoiser: that of an unweighted loss on the noise for noise and score, on x, or on v."""
    bare = underlying(model)
    if isinstance(bare, Denoiser) and bare.predict is predict_x:
        return flat_weight
    return snr_weight if magnifies(model) else v_weight


def magnifies(denoiser: Callable[..., Any]) -> bool:
    r"""Whether $\hat x$ divides the network's error by $\alpha$."""
    bare = underlying(denoiser)
    return isinstance(bare, Denoiser) and (bare.predict is predict_eps or bare.predict is predict_score)


def check_trained_range(schedule: AbstractSchedule, teacher: Callable[..., Any]) -> None:
    """Tells where rollouts are noisier than what the teacher was trained on, or refuses them.

    Raises:
        ValueError: for a teacher that predicts the noise or the score, which is worthless there.
    """
    trained = trained_under(teacher)
    if trained is None or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((schedule, trained))):
        return
    low, least = ends(schedule)[0], ends(trained)[0]
    if low >= least - _TOLERANCE:
        return
    told = (
        f"needs rollouts within what the teacher was trained on, log-SNRs from {least:.4g} on; got"
        f" {type(schedule).__name__.strip('_')}, down to {low:.4g}; leave the schedule out, which takes the teacher's"
        f" own, or use momentax.truncated(schedule, {least:.4g})"
    )
    if magnifies(teacher):
        raise ValueError(told)
    warnings.warn(told, stacklevel=2)


def trained_under(denoiser: Callable[..., Any]) -> AbstractSchedule | None:
    """The schedule that a denoiser was trained under, if it tells."""
    bare = underlying(denoiser)
    return bare.schedule if isinstance(bare, Denoiser) else None
