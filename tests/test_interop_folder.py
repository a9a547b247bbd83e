"""Folders of diffusers: what is in them is used or refused, and a denoiser keeps its scheduler's conventions."""

import json
import sys
import types
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strategies import DDPM

import momentax
from momentax.interop import denoiser_from_diffusers, from_diffusers, schedule_from_diffusers

safetensors = pytest.importorskip("safetensors.numpy")
SENTENCE = r"^needs .+; got .+; \w+.+"
STEM = "diffusion_pytorch_model"
WEIGHTS = {"slope": np.asarray([0.5, -2.0]), "drift": np.asarray([0.01, 0.02])}
Z = jnp.asarray([0.7, -0.4])
LOGSNRS = [-7.0, -0.3, 2.1, 6.5]


class Net(eqx.Module):
    """`net(z, t) = slope z + drift t`, so that an output tells both of its inputs."""

    slope: jax.Array
    drift: jax.Array

    def __call__(self, z, t, cond=None):
        return self.slope * z + self.drift * t


def build(options, tensors):
    width = options.take("width", 2)
    return Net(tensors.take("slope", (width,)), tensors.take("drift", (width,)))


@pytest.fixture(autouse=True)
def builders(monkeypatch, request):
    """A builder in place of each network's own, which have tests of their own."""
    if "real" not in request.fixturenames:
        for name in ("_unet_2d", "_unet_2d_condition", "_dit"):
            module = types.SimpleNamespace(build=build)
            monkeypatch.setitem(sys.modules, f"momentax.interop.{name}", module)


@pytest.fixture
def real():
    """The networks' own builders."""


def write_json(path, **values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def write_model(folder, class_name="UNet2DModel", weights=WEIGHTS, infix="", **options):
    write_json(folder / "config.json", _class_name=class_name, _diffusers_version="0.30.0", **options)
    if weights is not None:
        safetensors.save_file(weights, folder / f"{STEM}{infix}.safetensors")
    return folder


def write_pipeline(folder, class_name="DDPMScheduler", network="unet", **settings):
    write_json(
        folder / "model_index.json",
        _class_name="DDPMPipeline",
        scheduler=["diffusers", class_name],
        vae=[None, None],
        **{network: ["diffusers", "UNet2DModel"]},
    )
    write_json(folder / "scheduler" / "scheduler_config.json", _class_name=class_name, **settings)
    write_model(folder / network)
    return folder


def write_shards(folder, infix="", index=None):
    write_json(folder / "config.json", _class_name="UNet2DModel")
    places = {name: f"{STEM}-{i:05}-of-00002{infix}.safetensors" for i, name in enumerate(WEIGHTS, 1)}
    for name, place in places.items():
        safetensors.save_file({name: WEIGHTS[name]}, folder / place)
    write_json(
        folder / (index or f"{STEM}.safetensors.index{infix}.json"), metadata={"total_size": 32}, weight_map=places
    )
    return places


def logsnrs_of(path) -> Any:
    """The table of a discrete schedule."""
    schedule = schedule_from_diffusers(path)
    assert isinstance(schedule, momentax.DiscreteSchedule)
    return jnp.asarray(schedule.logsnrs)


def holds_weights(net: Any):
    np.testing.assert_array_equal(net.slope, WEIGHTS["slope"])
    np.testing.assert_array_equal(net.drift, WEIGHTS["drift"])


@pytest.mark.parametrize(
    "class_name", ["UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "Transformer2DModel"]
)
def test_a_models_folder_is_its_network(tmp_path, class_name):
    holds_weights(from_diffusers(write_model(tmp_path, class_name, width=2)))
    holds_weights(from_diffusers(str(tmp_path)))


def test_a_variant_is_taken_where_it_is_asked_for(tmp_path):
    write_model(tmp_path)
    halves = {name: (2 * array).astype(np.float16) for name, array in WEIGHTS.items()}
    write_model(tmp_path, weights=halves, infix=".fp16")
    holds_weights(from_diffusers(tmp_path))
    net = from_diffusers(tmp_path, variant="fp16")
    assert net.slope.dtype == jnp.float16
    np.testing.assert_array_equal(net.slope, [1.0, -4.0])
    with pytest.raises(FileNotFoundError, match=SENTENCE):
        from_diffusers(tmp_path, variant="bf16")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_one_network(tmp_path, variant):
    write_shards(tmp_path, "" if variant is None else f".{variant}")
    holds_weights(from_diffusers(tmp_path, variant=variant))


def test_the_index_of_a_variants_shards_may_be_called_as_it_once_was(tmp_path):
    write_shards(tmp_path, ".fp16", f"{STEM}.fp16.safetensors.index.json")
    holds_weights(from_diffusers(tmp_path, variant="fp16"))
    with pytest.warns(UserWarning, match="the variant 'fp16' alone"):
        holds_weights(from_diffusers(tmp_path))


@pytest.mark.parametrize("sharded", [False, True])
def test_the_only_variant_there_is_is_taken_with_a_word(tmp_path, sharded):
    write_shards(tmp_path, ".fp16") if sharded else write_model(tmp_path, infix=".fp16")
    with pytest.warns(UserWarning, match="weights of the variant 'fp16' alone, which are taken"):
        holds_weights(from_diffusers(tmp_path))
    holds_weights(from_diffusers(tmp_path, variant="fp16"))


def test_one_of_several_variants_must_be_named(tmp_path):
    write_model(tmp_path, infix=".fp16")
    write_model(tmp_path, infix=".non_ema")
    with pytest.raises(ValueError, match=r"got \['fp16', 'non_ema'\].*; pass variant='fp16'"):
        from_diffusers(tmp_path)
    holds_weights(from_diffusers(tmp_path, variant="non_ema"))


AVERAGE = {
    "decay": 0.9999,
    "inv_gamma": 1.0,
    "min_decay": 0.0,
    "optimization_step": 3000,
    "power": 0.75,
    "update_after_step": 0,
    "use_ema_warmup": True,
}


def test_an_average_that_a_training_kept_is_its_network(tmp_path):
    """What EMAModel says of itself is no option of the network."""
    holds_weights(from_diffusers(write_model(tmp_path, **AVERAGE)))


OTHERS = {name: -array for name, array in WEIGHTS.items()}


@pytest.mark.parametrize("name", ["unet", "transformer"])
def test_of_a_trainings_output_the_average_is_taken_with_a_word(tmp_path, name):
    write_model(tmp_path / name, weights=OTHERS)
    np.testing.assert_array_equal(from_diffusers(tmp_path).slope, OTHERS["slope"])
    write_model(tmp_path / f"{name}_ema", **AVERAGE)
    with pytest.warns(UserWarning, match=f"has {name} and its average {name}_ema, which is taken"):
        holds_weights(from_diffusers(tmp_path))
    given = {"predict": momentax.predict_v, "schedule": momentax.DiscreteSchedule(DDPM)}
    with pytest.warns(UserWarning, match="which is taken"):
        holds_weights(denoiser_from_diffusers(tmp_path, **given).net)
    np.testing.assert_array_equal(from_diffusers(tmp_path / name).slope, OTHERS["slope"])


def test_of_a_pipeline_its_own_network_is_taken_with_a_word(tmp_path):
    write_pipeline(tmp_path)
    write_model(tmp_path / "unet_ema", weights=OTHERS, **AVERAGE)
    with pytest.warns(UserWarning, match="is a pipeline with unet, which is taken, and not unet_ema"):
        holds_weights(denoiser_from_diffusers(tmp_path).net)


def test_shards_that_disagree_with_their_index_are_refused(tmp_path):
    places = write_shards(tmp_path)
    safetensors.save_file(WEIGHTS, tmp_path / places["slope"])
    with pytest.raises(ValueError, match=SENTENCE):
        from_diffusers(tmp_path)
    (tmp_path / places["slope"]).unlink()
    with pytest.raises(FileNotFoundError, match=SENTENCE):
        from_diffusers(tmp_path)


def test_an_index_does_not_lead_out_of_its_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write_shards(folder)
    safetensors.save_file(WEIGHTS, tmp_path / "secret.safetensors")
    places = dict.fromkeys(WEIGHTS, "../secret.safetensors")
    write_json(folder / f"{STEM}.safetensors.index.json", weight_map=places)
    with pytest.raises(ValueError, match=r"'\.\./secret"):
        from_diffusers(folder)


def test_a_pickle_is_refused_and_the_conversion_is_told(tmp_path):
    write_model(tmp_path, weights=None)
    (tmp_path / f"{STEM}.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(ValueError, match=SENTENCE) as error:
        from_diffusers(tmp_path)
    assert "safe_serialization=True" in str(error.value)


@pytest.mark.parametrize(
    ("weights", "options"),
    [
        (WEIGHTS | {"extra": np.zeros(1)}, {}),
        ({"slope": WEIGHTS["slope"]}, {}),
        (WEIGHTS, {"width": 3}),
        (WEIGHTS, {"depth": 3}),
    ],
    ids=["left over", "missing", "misshapen", "option"],
)
def test_every_tensor_and_every_option_is_used_or_refused(tmp_path, weights, options):
    with pytest.raises(ValueError, match=SENTENCE):
        from_diffusers(write_model(tmp_path, weights=weights, **options))


def test_another_class_is_refused_and_the_supported_ones_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"UNet2DConditionModel.+'AutoencoderKL'"):
        from_diffusers(write_model(tmp_path, "AutoencoderKL"))


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_config_that_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=SENTENCE):
        from_diffusers(tmp_path)


def test_a_folder_without_config_or_weights_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_diffusers(tmp_path)
    with pytest.raises(FileNotFoundError, match=STEM):
        from_diffusers(write_model(tmp_path, weights=None))


def net_at(z, t):
    return WEIGHTS["slope"] * z + WEIGHTS["drift"] * t


def own_step(logsnr, table=DDPM):
    """The fractional step of a log-SNR, by NumPy's interpolation of the table."""
    nodes = np.log(table) - np.log1p(-table)
    return np.interp(-logsnr, -nodes, np.arange(len(table)))


def x_from(prediction, logsnr, output):
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))
    z = np.asarray(Z)
    return {
        "epsilon": (z - sigma * output) / alpha,
        "sample": output,
        "v_prediction": alpha * z - sigma * output,
    }[prediction]


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("network", ["unet", "transformer"])
def test_a_pipelines_denoiser_keeps_its_schedulers_prediction_and_time(tmp_path, prediction, network):
    denoiser = eqx.filter_jit(
        denoiser_from_diffusers(write_pipeline(tmp_path, network=network, prediction_type=prediction))
    )
    for logsnr in LOGSNRS:
        expected = x_from(prediction, logsnr, net_at(np.asarray(Z), own_step(logsnr)))
        np.testing.assert_allclose(denoiser(Z, jnp.asarray(logsnr)), expected, rtol=1e-9)


def test_a_rounded_denoiser_gives_whole_steps(tmp_path):
    denoiser = denoiser_from_diffusers(write_pipeline(tmp_path), rounded=True)
    for logsnr in LOGSNRS:
        expected = x_from("epsilon", logsnr, net_at(np.asarray(Z), np.round(own_step(logsnr))))
        np.testing.assert_allclose(denoiser(Z, jnp.asarray(logsnr)), expected, rtol=1e-9)


def test_a_denoiser_at_its_own_steps_is_given_them(tmp_path):
    r"""At $\ell_i$ the network is told i, to the rounding of a log-SNR."""
    time: Any = denoiser_from_diffusers(write_pipeline(tmp_path)).time
    steps = jax.vmap(time)(logsnrs_of(tmp_path))
    np.testing.assert_allclose(steps, np.arange(1000), rtol=0, atol=1e-9)


def test_a_denoiser_of_a_flow_is_given_the_flows_time(tmp_path):
    folder = write_pipeline(tmp_path, "FlowMatchEulerDiscreteScheduler", "transformer", num_train_timesteps=500)
    denoiser = denoiser_from_diffusers(folder)
    for tau in (0.01, 0.4, 0.9):
        logsnr, y = 2 * np.log((1 - tau) / tau), np.asarray(Z) * np.hypot(tau, 1 - tau)
        np.testing.assert_allclose(denoiser(Z, jnp.asarray(logsnr)), y - tau * net_at(y, 500 * tau), rtol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_a_denoiser_of_edm_is_preconditioned_as_its_scheduler_says(tmp_path, sigma_data):
    denoiser = denoiser_from_diffusers(write_pipeline(tmp_path, "EDMEulerScheduler", sigma_data=sigma_data))
    for noise in (0.01, 1.0, 40.0):
        total, y = np.hypot(noise, sigma_data), np.asarray(Z) * np.sqrt(1 + noise**2)
        output = net_at(y / total, np.log(noise) / 4)
        expected = (sigma_data / total) ** 2 * y + noise * sigma_data / total * output
        np.testing.assert_allclose(denoiser(Z, jnp.asarray(-2 * np.log(noise))), expected, rtol=1e-11)


@pytest.mark.parametrize(
    "class_name", ["DDPMScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "bare"]
)
def test_a_denoisers_floating_point_leaves_are_its_networks(tmp_path, class_name):
    """What Equinox would train, and what the instant loss takes its gradient in: not the schedule's table."""
    folder = write_pipeline(tmp_path, "DDPMScheduler" if class_name == "bare" else class_name)
    own = {"predict": momentax.predict_eps, "schedule": momentax.DiscreteSchedule(DDPM)} if class_name == "bare" else {}
    denoiser = denoiser_from_diffusers(folder / "unet" if own else folder, **own)
    leaves = jax.tree.leaves(eqx.filter(denoiser, eqx.is_array))
    assert [id(leaf) for leaf in leaves] == [id(leaf) for leaf in jax.tree.leaves(denoiser.net)]
    assert len(leaves) == len(WEIGHTS)
    assert jax.tree.leaves(denoiser.time) == []
    loss = momentax.instant(denoiser, rollout=momentax.Rollout(k=2))
    grads = eqx.filter_jit(eqx.filter_grad(loss))(denoiser, jnp.ones((4, 2)), jax.random.key(0))
    assert [leaf.shape for leaf in jax.tree.leaves(grads)] == [(2,), (2,)]


def test_two_denoisers_of_one_folder_are_one_program(tmp_path):
    folder = write_pipeline(tmp_path, "EulerDiscreteScheduler", beta_schedule="scaled_linear")
    first, second = denoiser_from_diffusers(folder), denoiser_from_diffusers(folder)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert hash(jax.tree.structure(first)) == hash(jax.tree.structure(second))
    assert len(repr(first)) < 1000


def test_a_bare_model_is_given_its_prediction_and_schedule(tmp_path):
    pipeline = denoiser_from_diffusers(write_pipeline(tmp_path, prediction_type="v_prediction"))
    given = {"predict": momentax.predict_v, "schedule": schedule_from_diffusers(tmp_path)}
    bare = denoiser_from_diffusers(tmp_path / "unet", **given)
    for logsnr in map(jnp.asarray, LOGSNRS):
        np.testing.assert_allclose(bare(Z, logsnr), pipeline(Z, logsnr), rtol=1e-9)
    for missing in given:
        with pytest.raises(ValueError, match=SENTENCE):
            denoiser_from_diffusers(tmp_path / "unet", **{**given, missing: None})
        with pytest.raises(ValueError, match=SENTENCE):
            denoiser_from_diffusers(tmp_path, **{missing: given[missing]})


def test_a_bare_model_may_be_given_a_scheduler(tmp_path):
    """By its settings, its file, its folder or its pipeline's; or it lies in the model's own folder."""
    folder = write_pipeline(tmp_path, prediction_type="v_prediction", beta_start=0.001, num_train_timesteps=50)
    pipeline, settings = denoiser_from_diffusers(folder), folder / "scheduler" / "scheduler_config.json"
    for scheduler in (json.loads(settings.read_text()), settings, str(settings.parent), folder):
        assert eqx.tree_equal(denoiser_from_diffusers(folder / "unet", scheduler=scheduler), pipeline)
    with pytest.raises(ValueError, match="needs no predict, schedule or scheduler for a pipeline"):
        denoiser_from_diffusers(folder, scheduler=settings)
    with pytest.raises(ValueError, match="needs a scheduler, or predict and schedule; got both"):
        denoiser_from_diffusers(folder / "unet", scheduler=settings, predict=momentax.predict_v)
    settings.rename(folder / "unet" / "scheduler_config.json")
    assert eqx.tree_equal(denoiser_from_diffusers(folder / "unet"), pipeline)


def test_a_pipeline_of_one_network_may_lie_in_one_folder(tmp_path):
    write_pipeline(tmp_path / "parts")
    for file in ("model_index.json", "unet/config.json", f"unet/{STEM}.safetensors", "scheduler/scheduler_config.json"):
        (tmp_path / "parts" / file).rename(tmp_path / file.split("/")[-1])
    holds_weights(denoiser_from_diffusers(tmp_path).net)
    assert isinstance(schedule_from_diffusers(tmp_path), momentax.DiscreteSchedule)


@pytest.mark.parametrize("parts", [{}, {"unet": ["a", "b"], "transformer": ["a", "b"]}, {"unet": [None, None]}])
def test_a_pipeline_without_its_one_network_is_refused(tmp_path, parts):
    write_pipeline(tmp_path)
    write_json(tmp_path / "model_index.json", scheduler=["diffusers", "DDPMScheduler"], **parts)
    with pytest.raises(ValueError, match=SENTENCE):
        denoiser_from_diffusers(tmp_path)


def test_continuous_time_is_not_rounded(tmp_path):
    with pytest.raises(ValueError, match=SENTENCE):
        denoiser_from_diffusers(write_pipeline(tmp_path, "EDMEulerScheduler"), rounded=True)


def test_a_missing_scheduler_is_told(tmp_path):
    write_pipeline(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=SENTENCE):
        denoiser_from_diffusers(tmp_path)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_an_average_that_diffusers_saves_is_the_average(tmp_path, real):
    diffusers = pytest.importorskip("diffusers")
    training = pytest.importorskip("diffusers.training_utils")
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = diffusers.UNet2DModel(8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, **blocks)
    average = training.EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
    for parameter in average.shadow_params:
        parameter += 1
    unet.save_pretrained(tmp_path / "unet")
    average.save_pretrained(tmp_path / "unet_ema")
    assert set(AVERAGE) <= set(json.loads((tmp_path / "unet_ema" / "config.json").read_text()))
    plain, moved = (jax.tree.leaves(from_diffusers(tmp_path / name)) for name in ("unet", "unet_ema"))
    for ours, theirs in zip(plain, moved, strict=True):
        np.testing.assert_allclose(theirs, ours + 1, rtol=1e-6)
    with pytest.warns(UserWarning, match="its average unet_ema, which is taken"):
        assert eqx.tree_equal(jax.tree.leaves(from_diffusers(tmp_path)), moved)


@pytest.mark.oracle
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_pipeline_that_diffusers_writes_predicts_what_diffusers_does(tmp_path, real, prediction):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, **blocks
    ).eval()
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=False)
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    denoiser = eqx.filter_jit(denoiser_from_diffusers(tmp_path))
    logsnrs = logsnrs_of(tmp_path)
    for step in (10, 400, 800):
        z = torch.randn(1, 3, 8, 8)
        with torch.no_grad():
            expected = scheduler.step(unet(z, step).sample, step, z).pred_original_sample[0].numpy()
        found = denoiser(jnp.asarray(z[0].numpy()), logsnrs[step].astype(jnp.float32))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
