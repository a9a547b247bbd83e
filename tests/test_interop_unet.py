"""A U-Net of diffusers gives what PyTorch gives, and nothing in its folder goes unnoticed."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from momentax.interop import _unet_2d, _unet_2d_condition
from momentax.interop._options import Options
from momentax.interop._tensors import Tensors
from momentax.nn import Text, UNet

PLAIN = {
    "_class_name": "UNet2DModel",
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "num_class_embeds": 3,
    "attention_head_dim": 8,
}
# Of Stable Diffusion 1, but for its sizes.
TEXT = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 2,
    "block_out_channels": [8, 16],
    "center_input_sample": False,
    "cross_attention_dim": 6,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 2,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 4,
    "out_channels": 2,
    "sample_size": 8,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
BUILD = {"UNet2DModel": _unet_2d.build, "UNet2DConditionModel": _unet_2d_condition.build}


def imported(config, arrays):
    """The network, after every option and tensor was demanded."""
    options, tensors = Options(config, "config.json"), Tensors(arrays, "model.safetensors")
    net = BUILD[config["_class_name"]](options, tensors)
    options.finish()
    tensors.finish()
    return net


def linear(name, c_in, c_out, *ones, biased=True):
    return {f"{name}.weight": (c_out, c_in, *ones)} | ({f"{name}.bias": (c_out,)} if biased else {})


def norm(name, c):
    return {f"{name}.weight": (c,), f"{name}.bias": (c,)}


def block(name, c_in, c):
    """The tensors of a residual block."""
    shapes = norm(f"{name}.norm1", c_in) | linear(f"{name}.conv1", c_in, c, 3, 3) | norm(f"{name}.norm2", c)
    shapes |= linear(f"{name}.conv2", c, c, 3, 3) | linear(f"{name}.time_emb_proj", 32, c)
    return shapes if c_in == c else shapes | linear(f"{name}.conv_shortcut", c_in, c, 1, 1)


def heads(name, c, context=None, biased=False):
    maps = [linear(f"{name}.to_{x}", c if x == "q" else context or c, c, biased=biased) for x in "qkv"]
    return maps[0] | maps[1] | maps[2] | linear(f"{name}.to_out.0", c, c)


def attention(name, c, text):
    if not text:
        return norm(f"{name}.group_norm", c) | heads(name, c, biased=True)
    inner = f"{name}.transformer_blocks.0"
    shapes = norm(f"{name}.norm", c) | linear(f"{name}.proj_in", c, c, 1, 1) | linear(f"{name}.proj_out", c, c, 1, 1)
    shapes |= norm(f"{inner}.norm1", c) | norm(f"{inner}.norm2", c) | norm(f"{inner}.norm3", c)
    shapes |= heads(f"{inner}.attn1", c) | heads(f"{inner}.attn2", c, 6)
    return shapes | linear(f"{inner}.ff.net.0.proj", c, 8 * c) | linear(f"{inner}.ff.net.2", 4 * c, c)


def fabricated(config):
    """Noise in the names and shapes that diffusers gives the networks of the two configurations."""
    text, channels = config is TEXT, config["in_channels"]
    shapes = linear("conv_in", channels, 8, 3, 3) | linear("conv_out", 8, channels, 3, 3) | norm("conv_norm_out", 8)
    shapes |= linear("time_embedding.linear_1", 8, 32) | linear("time_embedding.linear_2", 32, 32)
    shapes |= {} if text else {"class_embedding.weight": (3, 32)}
    shapes |= block("down_blocks.0.resnets.0", 8, 8) | linear("down_blocks.0.downsamplers.0.conv", 8, 8, 3, 3)
    shapes |= block("down_blocks.1.resnets.0", 8, 16)
    shapes |= block("mid_block.resnets.0", 16, 16) | block("mid_block.resnets.1", 16, 16)
    shapes |= block("up_blocks.0.resnets.0", 32, 16) | block("up_blocks.0.resnets.1", 24, 16)
    shapes |= linear("up_blocks.0.upsamplers.0.conv", 16, 16, 3, 3)
    shapes |= block("up_blocks.1.resnets.0", 24, 8) | block("up_blocks.1.resnets.1", 16, 8)
    high = [("down_blocks.0.attentions.0", 8), ("up_blocks.1.attentions.0", 8), ("up_blocks.1.attentions.1", 8)]
    low = [("down_blocks.1.attentions.0", 16), ("up_blocks.0.attentions.0", 16), ("up_blocks.0.attentions.1", 16)]
    for name, c in [("mid_block.attentions.0", 16), *(high if text else low)]:
        shapes |= attention(name, c, text)
    rng = np.random.default_rng(0)
    return {name: 0.2 * rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def without(arrays, *names):
    return {name: array for name, array in arrays.items() if name not in names}


def renamed(arrays):
    """The arrays with the names that attention had before 2023."""
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for part, former in new.items():
        arrays = {name.replace(f".{part}.", f".{former}."): array for name, array in arrays.items()}
    return arrays


@eqx.filter_jit
def applied(net, z, t, cond):
    return net(z, t, cond)


both = pytest.mark.parametrize("config", [PLAIN, TEXT], ids=["plain", "text"])


def example(config):
    """One image, a time that is no step, and a condition."""
    rng = np.random.default_rng(1)
    z = jnp.asarray(rng.standard_normal((config["in_channels"], 4, 4)), jnp.float32)
    cond = jnp.array(1) if config["_class_name"] == "UNet2DModel" else Text(jnp.asarray(rng.standard_normal((3, 6))))
    return z, jnp.array(123.4, jnp.float32), cond


@both
def test_every_option_and_every_tensor_has_its_place(config):
    arrays = fabricated(config)
    net = imported(config, {name: array.astype(np.float16) for name, array in arrays.items()})
    assert isinstance(net, UNet)
    leaves = jax.tree.leaves(net)
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == sum(array.size for array in arrays.values())
    z, t, cond = example(config)
    y = applied(net, z, t, cond)
    assert y.shape == z.shape
    assert y.dtype == jnp.float32
    assert jnp.isfinite(y).all()


PUBLISHED = {
    # Stable Diffusion 1, whose configuration says little more.
    859_520_964: TEXT
    | {
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "in_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 4,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    # The network for CIFAR-10 of Ho et al. (2020), "35.7M" in their appendix.
    35_746_307: {
        "_class_name": "UNet2DModel",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    },
}


@pytest.mark.parametrize("number", PUBLISHED)
def test_published_networks_have_as_many_parameters_as_published(number):
    """And nothing is allocated to know it."""
    options = Options(PUBLISHED[number], "config.json")
    module = {"UNet2DModel": _unet_2d, "UNet2DConditionModel": _unet_2d_condition}[PUBLISHED[number]["_class_name"]]
    leaves = jax.tree.leaves(module._skeleton(options))
    options.finish()
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == number


def test_former_names_of_attention_are_understood():
    arrays = fabricated(PLAIN)
    former = renamed(arrays)
    assert "mid_block.attentions.0.proj_attn.bias" in former
    assert eqx.tree_equal(imported(PLAIN, former), imported(PLAIN, arrays))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (PLAIN, {"colour": 1}, r"known; got \['colour'\]"),
        (PLAIN, {"class_embed_type": "timestep"}, "class_embed_type in .*'timestep'"),
        (PLAIN, {"time_embedding_type": "learned"}, "time_embedding_type in .*'learned'"),
        (PLAIN, {"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift in .*'spatial'"),
        (PLAIN, {"downsample_type": "fir"}, "downsample_type in .*'fir'"),
        (PLAIN, {"upsample_type": "fir"}, "upsample_type in .*'fir'"),
        (PLAIN, {"act_fn": "mish"}, "act_fn in .*'mish'"),
        (PLAIN, {"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type in .*'UNetMidBlock2DCrossAttn'"),
        (PLAIN, {"downsample_padding": 2}, "downsample_padding in .*; got 2"),
        (PLAIN, {"layers_per_block": [1, 2]}, r"layers_per_block.*\[1, 2\]"),
        (PLAIN, {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "down_block_types.*SkipDownBlock2D"),
        (PLAIN, {"up_block_types": ["UpBlock2D", "AttnSkipUpBlock2D"]}, "up_block_types.*AttnSkipUpBlock2D"),
        (PLAIN, {"up_block_types": ["UpBlock2D"]}, "2 up_block_types"),
        (TEXT, {"colour": 1}, r"known; got \['colour'\]"),
        (TEXT, {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "down_block_types.*AttnDownBlock2D"),
        (TEXT, {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type in .*Simple"),
        (TEXT, {"cross_attention_dim": [6, 6]}, r"cross_attention_dim.*\[6, 6\]"),
        (TEXT, {"layers_per_block": [1, 2]}, r"layers_per_block.*\[1, 2\]"),
        (TEXT, {"transformer_layers_per_block": 2}, "transformer_layers_per_block in .*; got 2"),
        (TEXT, {"mid_block_only_cross_attention": True}, "mid_block_only_cross_attention in .*; got True"),
    ],
)
def test_what_is_not_supported_is_named(config, changes, message):
    with pytest.raises(ValueError, match=f"^needs .*{message}.*; do .+"):
        imported(config | changes, fabricated(config))


@pytest.mark.parametrize("name", _unet_2d_condition._FIXED)
def test_what_has_one_value_only_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"needs {name} in .*; got 'other'"):
        imported(TEXT | {name: "other"}, fabricated(TEXT))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (PLAIN, "class_embedding.weight"),
        (PLAIN, "mid_block.attentions.0.to_k.bias"),
        (PLAIN, "up_blocks.0.resnets.1.conv_shortcut.weight"),
        (TEXT, "down_blocks.0.attentions.0.proj_in.weight"),
        (TEXT, "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj.weight"),
    ],
)
def test_missing_spare_and_misshapen_tensors_are_named(config, name):
    arrays = fabricated(config)
    with pytest.raises(ValueError, match=f"needs the tensor '{name}'"):
        imported(config, without(arrays, name))
    with pytest.raises(ValueError, match=f"needs '{name}' of shape"):
        imported(config, arrays | {name: arrays[name][..., None]})
    with pytest.raises(ValueError, match="'spare' left over"):
        imported(config, arrays | {"spare": np.ones(1, np.float32)})


def test_no_class_and_no_text_are_refused():
    z, t, _ = example(PLAIN)
    with pytest.raises(ValueError, match="needs cond, a class"):
        imported(PLAIN, fabricated(PLAIN))(z, t)
    z, t, _ = example(TEXT)
    net = imported(TEXT, fabricated(TEXT))
    for cond in (None, jnp.array(1), Text(jnp.ones((3, 5)))):
        with pytest.raises(ValueError, match=r"cond needs embeddings of shape \(tokens, 6\); got .*; pass"):
            net(z, t, cond)


RESNET = {
    "down_block_types": ["ResnetDownsampleBlock2D", "DownBlock2D"],
    "up_block_types": ["ResnetUpsampleBlock2D", "AttnUpBlock2D"],
}
THREE = {
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
ORACLES = {
    "plain": PLAIN,
    "no class": PLAIN | {"num_class_embeds": None},
    "three levels": PLAIN | THREE | {"layers_per_block": 2},
    "resnet sampling": PLAIN | THREE | {"downsample_type": "resnet", "upsample_type": "resnet"},
    "resnet blocks, asymmetric attention": PLAIN | RESNET,
    "scale and shift": PLAIN | {"resnet_time_scale_shift": "scale_shift"},
    "scale and shift with a norm": PLAIN | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "norm of other groups": PLAIN | {"attn_norm_num_groups": 8, "norm_num_groups": 2, "norm_eps": 1e-3},
    "padding after": PLAIN | {"downsample_padding": 0, "act_fn": "swish", "dropout": 0.3},
    "one head": PLAIN | {"attention_head_dim": None},
    "no middle": PLAIN | {"mid_block_type": None},
    "no attention in the middle": PLAIN | {"add_attention": False, "mid_block_scale_factor": 2.0},
    "scaled middle": PLAIN | {"mid_block_scale_factor": 1.5},
    "ddpm": PLAIN | {"freq_shift": 1, "flip_sin_to_cos": False, "center_input_sample": True},
    "wide embedding": PLAIN | {"time_embedding_dim": 24, "in_channels": 3, "out_channels": 6},
    "fourier": PLAIN | {"time_embedding_type": "fourier", "num_class_embeds": None},
    "sd": TEXT,
    "sd 2": TEXT | {"use_linear_projection": True, "attention_head_dim": [2, 4], "upcast_attention": True},
    "sd without a middle": TEXT | {"mid_block_type": None, "downsample_padding": 0},
    "sd otherwise": TEXT
    | {
        "center_input_sample": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "mid_block_scale_factor": 1.5,
        "resnet_time_scale_shift": "scale_shift",
        "layers_per_block": 2,
        "norm_num_groups": 2,
        "norm_eps": 1e-3,
        "time_embedding_dim": 24,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
}


def saved(config, folder):
    """A random model of diffusers with nothing at zero, and what it stores."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.numpy")
    torch.manual_seed(0)
    options = {name: value for name, value in config.items() if name[0] != "_"}
    oracle = getattr(diffusers, config["_class_name"])(**options).eval()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    oracle.save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())
    return oracle, imported(stored, safetensors.load_file(folder / "diffusion_pytorch_model.safetensors"))


def conditions(config, torch, masked=True):
    """Five conditions of our networks, and as the arguments of diffusers'."""
    if config["_class_name"] == "UNet2DConditionModel" and not masked:
        text = np.random.default_rng(2).standard_normal((5, 3, 6)).astype(np.float32)
        return Text(jnp.asarray(text)), {"encoder_hidden_states": torch.from_numpy(text)}
    if config["_class_name"] == "UNet2DConditionModel":
        text = np.random.default_rng(2).standard_normal((5, 3, 6)).astype(np.float32)
        mask = np.arange(3) < np.array([1, 2, 3, 3, 2])[:, None]
        given = {"encoder_hidden_states": torch.from_numpy(text), "encoder_attention_mask": torch.from_numpy(mask)}
        return Text(jnp.asarray(text), jnp.asarray(mask)), given
    if config["num_class_embeds"] is None:
        return None, {}
    labels = np.array([0, 2, 1, 1, 0])
    return jnp.asarray(labels), {"class_labels": torch.from_numpy(labels)}


@eqx.filter_jit
def with_tangents(net, z, t, cond):
    """The outputs, and how they change with the parameters and with the times."""
    net = eqx.nn.inference_mode(net)
    params, rest = eqx.partition(net, eqx.is_inexact_array)

    def outputs(params, t):
        return jax.vmap(eqx.combine(params, rest))(z, t, cond)

    return jax.jvp(outputs, (params, t), (params, jnp.ones_like(t)))


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ORACLES)
def test_it_is_what_pytorch_computes(name, tmp_path):
    """From the first step to the last and between steps; for Fourier features noise levels."""
    torch = pytest.importorskip("torch")
    oracle, net = saved(ORACLES[name], tmp_path)
    channels = ORACLES[name]["in_channels"]
    z = np.random.default_rng(1).standard_normal((5, channels, 8, 8)).astype(np.float32)
    times = [0.02, 0.5, 1.3, 20.0, 80.0] if name == "fourier" else [0.0, 1.0, 250.0, 371.6, 999.0]
    times = np.array(times, np.float32)
    cond, given = conditions(ORACLES[name], torch)
    with torch.no_grad():
        y = oracle(torch.from_numpy(z), torch.from_numpy(times), **given).sample[:, :channels].numpy()
    x, tangent = with_tangents(net, jnp.asarray(z), jnp.asarray(times), cond)
    assert 0.1 < np.abs(y).mean() < 10 or name == "fourier"
    # Both are in single precision, in which the cosines of a thousand radians are good to 6e-5 only.
    scale = np.maximum(1, np.abs(y).max((1, 2, 3)))
    assert (np.abs(x - y).max((1, 2, 3)) < 2e-5 * scale).all()
    assert jnp.isfinite(tangent).all()
    assert jnp.abs(tangent).max() > 1e-3


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [(7, 7), (5, 8), (9, 6), (6, 11)])
def test_sides_that_do_not_halve_are_what_pytorch_computes(padding, size, tmp_path):
    """And a text without a mask is one whose tokens all count, padding among them."""
    torch = pytest.importorskip("torch")
    levels = {
        "block_out_channels": [8, 8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
    }
    oracle, net = saved(TEXT | levels | {"downsample_padding": padding}, tmp_path)
    z = np.random.default_rng(1).standard_normal((5, 2, *size)).astype(np.float32)
    times = np.array([0.0, 1.0, 250.0, 371.6, 999.0], np.float32)
    cond, given = conditions(TEXT, torch, masked=False)
    with torch.no_grad():
        y = oracle(torch.from_numpy(z), torch.from_numpy(times), **given).sample.numpy()
    x, _ = with_tangents(net, jnp.asarray(z), jnp.asarray(times), cond)
    assert np.abs(x - y).max() < 2e-5 * np.maximum(1, np.abs(y).max())


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@both
def test_what_a_configuration_leaves_out_is_what_diffusers_says(config, tmp_path):
    saved(config, tmp_path)
    full, arrays = json.loads((tmp_path / "config.json").read_text()), fabricated(config)
    assert set(full) > set(config)
    assert eqx.tree_equal(imported(full, arrays), imported(config, arrays))
