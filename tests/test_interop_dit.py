"""A DiT of diffusers gives what PyTorch gives, and nothing in its folder goes unnoticed."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from momentax.interop._dit import build
from momentax.interop._options import Options
from momentax.interop._tensors import Tensors
from momentax.nn._position import position_table

CONFIG = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 2,
    "num_layers": 2,
    "sample_size": 4,
    "num_embeds_ada_norm": 3,
}


def imported(config, arrays):
    """The network, after every option and tensor was demanded."""
    options, tensors = Options(config, "config.json"), Tensors(arrays, "model.safetensors")
    net = build(options, tensors)
    options.finish()
    tensors.finish()
    return net


def fabricated(config, dtype=np.float32):
    """Noise in the names and shapes that diffusers gives a network of this configuration."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patch, c_in = config.get("patch_size", 2), config["in_channels"]
    c_out = (config.get("out_channels") or c_in) * patch**2
    shapes = {"pos_embed.proj.weight": (width, c_in, patch, patch), "pos_embed.proj.bias": (width,)}
    shapes |= linear("proj_out_1", width, 2 * width) | linear("proj_out_2", width, c_out)
    for i in range(config["num_layers"]):
        block = f"transformer_blocks.{i}"
        emb = f"{block}.norm1.emb"
        shapes |= linear(f"{emb}.timestep_embedder.linear_1", 256, width)
        shapes |= linear(f"{emb}.timestep_embedder.linear_2", width, width)
        shapes |= {f"{emb}.class_embedder.embedding_table.weight": (config["num_embeds_ada_norm"] + 1, width)}
        shapes |= linear(f"{block}.norm1.linear", width, 6 * width)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            biased = name == "to_out.0" or config.get("attention_bias", True)
            shapes |= linear(f"{block}.attn1.{name}", width, width, biased)
        shapes |= linear(f"{block}.ff.net.0.proj", width, 4 * width) | linear(f"{block}.ff.net.2", 4 * width, width)
    rng = np.random.default_rng(0)
    return {name: 0.2 * rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def linear(name, c_in, c_out, biased=True):
    return {f"{name}.weight": (c_out, c_in)} | ({f"{name}.bias": (c_out,)} if biased else {})


@eqx.filter_jit
def applied(net, z, t, cond=None):
    return net(z, t, cond)


VARIANTS = pytest.mark.parametrize(
    "changes",
    [
        {},
        {"out_channels": 4, "norm_eps": 1e-2},
        {"attention_bias": False, "patch_size": 1, "num_layers": 1},
    ],
    ids=["plain", "learned-variance", "no-bias"],
)


@VARIANTS
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_configuration_and_its_tensors_make_a_network_in_single_precision(changes, dtype):
    config = CONFIG | changes
    net = imported(config, fabricated(config, dtype))
    arrays = [leaf for leaf in jax.tree.leaves(net) if not isinstance(leaf, bool | float)]
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in arrays)
    x = applied(net, jnp.ones((2, 4, 4), jnp.float32), jnp.float32(500.0))
    assert x.shape == (2, 4, 4)
    assert x.dtype == jnp.float32
    assert jnp.isfinite(x).all()


def test_no_tensor_is_without_effect():
    arrays = fabricated(CONFIG)
    args = jnp.ones((2, 4, 4), jnp.float32), jnp.float32(500.0), jnp.array(1)
    plain = applied(imported(CONFIG, arrays), *args)
    rng = np.random.default_rng(1)
    for name, array in arrays.items():
        changed = applied(imported(CONFIG, arrays | {name: rng.standard_normal(array.shape).astype("f4")}), *args)
        # A bias of the keys adds the same to all logits of a query, and the softmax takes it away.
        assert (jnp.abs(changed - plain).max() > 1e-5) == (not name.endswith("to_k.bias")), name


def test_what_the_former_class_says_besides_changes_nothing():
    former = {"norm_type": "ada_norm_zero", "cross_attention_dim": None, "num_vector_embeds": None, "dropout": 0.0}
    former |= {"only_cross_attention": False, "use_linear_projection": False, "norm_num_groups": 32}
    arrays = fabricated(CONFIG)
    assert eqx.tree_equal(imported(CONFIG | former, arrays), imported(CONFIG, arrays))


def test_positions_may_be_stored_and_then_are_those_that_are_computed():
    arrays, table = fabricated(CONFIG), np.asarray(position_table(2, 2, 8), np.float32).reshape(1, 4, 8)
    assert eqx.tree_equal(imported(CONFIG, arrays | {"pos_embed.pos_embed": table}), imported(CONFIG, arrays))
    with pytest.raises(ValueError, match="needs sines and cosines"):
        imported(CONFIG, arrays | {"pos_embed.pos_embed": table + 0.1})


def test_dropout_is_that_of_the_configuration():
    net = imported(CONFIG | {"dropout": 0.25}, fabricated(CONFIG))
    assert [block.dropout and block.dropout.p for block in net.blocks] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_type": "layer_norm"}, r"norm_type in \['ada_norm_zero'\]; got 'layer_norm'"),
        ({"activation_fn": "geglu"}, r"activation_fn in \['gelu-approximate'\]; got 'geglu'"),
        ({"norm_elementwise_affine": True}, r"norm_elementwise_affine in \[False\]; got True"),
        ({"cross_attention_dim": 768}, r"cross_attention_dim in \[None\]; got 768"),
        ({"novelty": 1}, r"options that are known; got \['novelty'\]"),
        ({"num_layers": 3}, r"tensor 'transformer_blocks.2.norm1.emb"),
        ({"num_layers": 1}, r"got 'transformer_blocks.1.* left over"),
        ({"num_embeds_ada_norm": 4}, r"embedding_table.weight' of shape \(5, 8\); got \(4, 8\)"),
        ({"sample_size": 5}, r"divisible by 2; got \(2, 5, 5\)"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        imported(CONFIG | changes, fabricated(CONFIG))


@pytest.mark.oracle
@VARIANTS
@pytest.mark.parametrize("step", [0.0, 1.0, 250.0, 999.0])
def test_it_is_what_pytorch_computes(changes, step, tmp_path):
    """Steps from the first to the last, all classes and none, for three images at once."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.numpy")
    torch.manual_seed(0)
    oracle = diffusers.DiTTransformer2DModel(**{k: v for k, v in (CONFIG | changes).items() if k[0] != "_"}).eval()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    oracle.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    net = imported(config, safetensors.load_file(tmp_path / "diffusion_pytorch_model.safetensors"))
    z = np.random.default_rng(1).standard_normal((4, 2, 4, 4)).astype(np.float32)
    with torch.no_grad():
        y = oracle(torch.from_numpy(z), torch.full((4,), step), torch.arange(4)).sample[:, :2].numpy()
    t, cond = jnp.full(4, step, jnp.float32), jnp.arange(4)
    x = together(net, z, t, cond)
    # Both are in single precision, in which the cosines of a thousand radians are good to 6e-5 only.
    assert np.abs(x - y).max() < 2e-5
    none = applied(net, jnp.asarray(z[3]), t[3])
    assert np.abs(none - x[3]).max() < 2e-5


@eqx.filter_jit
def together(net, z, t, cond):
    return jax.vmap(net)(z, t, cond)
