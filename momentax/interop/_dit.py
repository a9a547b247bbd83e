import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

from ..nn import DiT
from ..nn._embedding import Embedding, StepFeatures
from ..nn._linear import Linear
from ..nn._position import position_table
from ..nn._transformer import TransformerBlock
from ._options import Options
from ._reader import Reader, replaced
from ._tensors import Tensors

# What checkpoints of the former Transformer2DModel say besides, with the only values that mean a DiT.
_FORMER = {
    "attention_type": "default",
    "caption_channels": None,
    "cross_attention_dim": None,
    "double_self_attention": False,
    "interpolation_scale": None,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "use_additional_conditions": None,
    "use_linear_projection": False,
}


def build(options: Options, tensors: Tensors) -> DiT:
    """The network of diffusers' DiTTransformer2DModel in float32, `net(z, step, cond)`; no class is its last row.

    Each block has its own embedding of step and class, as there.
    """
    net, read = eqx.filter_eval_shape(lambda: _skeleton(options)), Reader(tensors)
    names = [f"transformer_blocks.{i}" for i in range(len(net.blocks))]
    _check_positions(net, tensors)
    return replaced(
        net,
        embeddings=tuple(_embedding(e, read, name) for e, name in zip(net.embeddings, names, strict=True)),
        first=_patches(net, read),
        blocks=tuple(_block(block, read, name) for block, name in zip(net.blocks, names, strict=True)),
        modulation=read.linear(net.modulation, "proj_out_1"),
        last=read.linear(net.last, "proj_out_2"),
    )


def _skeleton(options: Options) -> DiT:
    take = options.take
    take("norm_type", "ada_norm_zero", "ada_norm_zero")
    take("activation_fn", "gelu-approximate", "gelu-approximate")
    take("norm_elementwise_affine", False, False)
    for name, value in _FORMER.items():
        take(name, value, value)
    for name in ("norm_num_groups", "upcast_attention"):  # of no effect here
        take(name, None)
    heads, channels, size = take("num_attention_heads", 16), take("in_channels", 4), take("sample_size", 32)
    return DiT(
        (channels, size, size),
        width=heads * take("attention_head_dim", 72),
        depth=take("num_layers", 28),
        heads=heads,
        patch=take("patch_size", 2),
        num_classes=take("num_embeds_ada_norm", 1000),
        out_channels=take("out_channels", None),
        features=StepFeatures(256, shift=1.0),
        embedding_per_block=True,
        attention_bias=take("attention_bias", True),
        mlp_epsilon=take("norm_eps", 1e-5),
        dropout=take("dropout", 0.0),
        key=jr.key(0),
    )


def _check_positions(net: DiT, tensors: Tensors) -> None:
    """Demands that a table of positions, where one is stored, is the one that is computed."""
    name = "pos_embed.pos_embed"
    if name not in tensors:
        return
    h, w, width = net.shape[1] // net.patch, net.shape[2] // net.patch, net.first.weight.shape[1]
    stored = tensors.take(name, (1, h * w, width))
    computed = position_table(h, w, width).reshape(stored.shape).astype(stored.dtype)
    if not jnp.allclose(stored, computed, atol=1e-5):
        raise ValueError(f"needs sines and cosines as {name!r}; got others; do choose another checkpoint")


def _embedding(embedding: Embedding, read: Reader, block: str) -> Embedding:
    name, classes = f"{block}.norm1.emb", embedding.classes
    table = f"{name}.class_embedder.embedding_table.weight"
    return replaced(
        embedding,
        inner=read.equinox_linear(embedding.inner, f"{name}.timestep_embedder.linear_1"),
        outer=read.equinox_linear(embedding.outer, f"{name}.timestep_embedder.linear_2"),
        classes=None if classes is None else read.take(table, classes.shape),
    )


def _patches(net: DiT, read: Reader) -> Linear:
    """A convolution with a stride of its size is a linear map of each patch."""
    width = net.first.weight.shape[1]
    kernel = read.take("pos_embed.proj.weight", (width, net.shape[0], net.patch, net.patch))
    weight = kernel.transpose(2, 3, 1, 0).reshape(-1, width)
    return replaced(net.first, weight=weight, bias=read.take("pos_embed.proj.bias", (width,)))


def _block(block: TransformerBlock, read: Reader, name: str) -> TransformerBlock:
    return replaced(
        block,
        modulation=read.linear(block.modulation, f"{name}.norm1.linear"),
        attention=read.attention(block.attention, f"{name}.attn1"),
        inner=read.linear(block.inner, f"{name}.ff.net.0.proj"),
        outer=read.linear(block.outer, f"{name}.ff.net.2"),
    )
