"""A folder that diffusers wrote, and what PyTorch computed with it: the same numbers, without either at hand."""

import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import momentax as mm

HERE = pathlib.Path(__file__).parent / "diffusers"
FOLDER = HERE / "ddpm-pipeline"


@pytest.fixture(scope="module")
def recorded():
    with np.load(HERE / "outputs.npz", allow_pickle=False) as arrays:
        return {name: jnp.asarray(array) for name, array in arrays.items()}


def test_the_network_of_a_folder_gives_pytorchs_outputs(recorded):
    net = mm.interop.from_diffusers(FOLDER / "unet")
    call = eqx.filter_jit(lambda net, *args: jax.vmap(net)(*args))
    found = call(net, recorded["z"], recorded["t"], recorded["label"].astype(jnp.int32))
    # Two orders of summation in float32, some ten layers deep, of outputs of order one.
    np.testing.assert_allclose(found, recorded["output"], rtol=0, atol=2e-5)


def test_the_denoiser_of_a_folder_knows_prediction_and_time(recorded):
    r"""$\alpha z - \sigma v$ at the log-SNR of the step, by the recorded output and the scheduler's own table."""
    denoiser = mm.interop.denoiser_from_diffusers(FOLDER)
    for i in (1, 3):
        kept = recorded["alphas_cumprod"][int(recorded["t"][i])]
        logsnr = (jnp.log(kept) - jnp.log1p(-kept)).astype(jnp.float32)
        found = eqx.filter_jit(denoiser)(recorded["z"][i], logsnr, recorded["label"][i].astype(jnp.int32))
        v = recorded["output"][i].astype(kept.dtype)
        expected = jnp.sqrt(kept) * recorded["z"][i].astype(kept.dtype) - jnp.sqrt(1 - kept) * v
        # A step of float32 log-SNR is 1e-4 of a step of the table.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def texts():
    with np.load(HERE / "text.npz", allow_pickle=False) as arrays:
        return {name: jnp.asarray(array) for name, array in arrays.items()}


@pytest.mark.parametrize("output", ["output", "masked"])
def test_a_network_with_text_gives_pytorchs_outputs_on_sides_that_do_not_halve(texts, output):
    """Images of 7 by 10 at three resolutions; without a mask every token counts, as in Stable Diffusion."""
    net = mm.interop.from_diffusers(HERE / "text")
    text = mm.nn.Text(texts["text"], texts["mask"] if output == "masked" else None)
    found = eqx.filter_jit(lambda net, *args: jax.vmap(net)(*args))(net, texts["z"], texts["t"], text)
    np.testing.assert_allclose(found, texts[output], rtol=0, atol=2e-5)
    assert jnp.abs(texts["output"] - texts["masked"]).max() > 100 * 2e-5
