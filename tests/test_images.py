"""Patches of images, and the conversion of models that read them, without PyTorch."""

import numpy as np
import pytest

import refseq2seq as rs
from refseq2seq.convert import from_huggingface, from_x_transformers

RNG = np.random.default_rng(0)


def conv(images, kernel, h, w):
    """A convolution whose stride is its size, one product at a time: (batch, n_patches, d)."""
    batch, channels, height, width = images.shape
    out = np.zeros((batch, height // h * (width // w), len(kernel)))
    for b, i, d in np.ndindex(out.shape):
        row, column = divmod(i, width // w)
        for c, y, x in np.ndindex(channels, h, w):
            out[b, i, d] += kernel[d, c, y, x] * images[b, c, row * h + y, column * w + x]
    return out


@pytest.mark.parametrize(("size", "h", "w"), [(3, 3, 3), ((3, 2), 3, 2), ((1, 7), 1, 7), (1, 1, 1)])
def test_patches_are_the_numbers_that_a_convolution_multiplies(size, h, w):
    images = RNG.normal(size=(2, 5, 3 * h, 2 * w))
    kernel = RNG.normal(size=(11, 5, h, w))
    found = rs.patches(images, size) @ kernel.reshape(11, -1).T
    np.testing.assert_allclose(found, conv(images, kernel, h, w), rtol=0, atol=1e-12)


def test_patches_by_hand():
    """Two channels, two rows of three patches, each of one row and two columns."""
    channel = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]])
    found = rs.patches(np.stack([channel, -channel])[None], (1, 2))
    assert found.tolist() == [[[n, n + 1, -n, -n - 1] for n in (1, 3, 5, 7, 9, 11)]]
    assert found.dtype == channel.dtype


@pytest.mark.parametrize(
    ("images", "size", "kind", "said"),
    [
        (np.zeros((1, 3, 6, 8)), 3, ValueError, r"size = 3, got \(1, 3, 6, 8\)"),
        (np.zeros((1, 3, 6, 8)), (4, 3), ValueError, r"size = \(4, 3\)"),
        (np.zeros((3, 6, 6)), 3, ValueError, r"\(3, 6, 6\)"),
        (np.zeros((0, 3, 6, 6)), 3, ValueError, r"\(0, 3, 6, 6\)"),
        (np.zeros((1, 3, 0, 6)), 3, ValueError, r"\(1, 3, 0, 6\)"),
        (np.zeros((1, 3, 6, 6)), 0, ValueError, "size must be at least 1"),
        (np.zeros((1, 3, 6, 6)), 2.0, TypeError, "size must be an int"),
        (np.zeros((1, 3, 6, 6)), (1, 2, 3), ValueError, r"\(1, 2, 3\)"),
        (np.ma.zeros((1, 3, 6, 6)), 3, TypeError, "images is a masked array"),
        ("a.png", 3, ValueError, "images"),
    ],
)
def test_images_and_sizes_that_do_not_fit_raise(images, size, kind, said):
    with pytest.raises(kind, match=said):
        rs.patches(images, size)


# Models: d of the encoder, of the decoder, of its feed-forward; tokens; positions.

D, E, FF, VOCABULARY, ROOM = 6, 4, 7, 11, 9
CONFIG = {
    "model_type": "vision-encoder-decoder",
    "decoder_start_token_id": 2,
    "encoder": {
        "model_type": "deit",
        "hidden_size": D,
        "num_hidden_layers": 0,
        "num_attention_heads": 2,
        "intermediate_size": FF,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "image_size": [4, 9],
        "patch_size": [2, 3],
        "num_channels": 5,
    },
    "decoder": {
        "model_type": "trocr",
        "vocab_size": VOCABULARY,
        "d_model": E,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": FF,
        "max_position_embeddings": ROOM,
        "activation_function": "gelu",
        "scale_embedding": False,
        "use_learned_position_embeddings": True,
        "layernorm_embedding": True,
        "pad_token_id": 1,
        "eos_token_id": 2,
    },
}
INSIDE = "decoder.model.decoder."
SHAPES = {
    "encoder.embeddings.cls_token": (1, 1, D),
    "encoder.embeddings.distillation_token": (1, 1, D),
    "encoder.embeddings.position_embeddings": (1, 2 + 6, D),
    "encoder.embeddings.patch_embeddings.projection.weight": (D, 5, 2, 3),
    "encoder.embeddings.patch_embeddings.projection.bias": (D,),
    "encoder.layernorm.weight": (D,),
    "encoder.layernorm.bias": (D,),
    "encoder.pooler.dense.weight": (D, D),
    "enc_to_dec_proj.weight": (E, D),
    "enc_to_dec_proj.bias": (E,),
    f"{INSIDE}embed_tokens.weight": (VOCABULARY, E),
    f"{INSIDE}embed_positions.weight": (ROOM + 2, E),
    **{
        f"{INSIDE}layers.0.{attention}.{part}_proj.{kind}": (E, E)[: 1 + (kind == "weight")]
        for attention in ("self_attn", "encoder_attn")
        for part in ("q", "k", "v", "out")
        for kind in ("weight", "bias")
    },
    **{
        f"{INSIDE}{norm}.{kind}": (E,)
        for norm in (
            "layernorm_embedding",
            "layers.0.self_attn_layer_norm",
            "layers.0.encoder_attn_layer_norm",
            "layers.0.final_layer_norm",
        )
        for kind in ("weight", "bias")
    },
    f"{INSIDE}layers.0.fc1.weight": (FF, E),
    f"{INSIDE}layers.0.fc1.bias": (FF,),
    f"{INSIDE}layers.0.fc2.weight": (E, FF),
    f"{INSIDE}layers.0.fc2.bias": (E,),
}


def test_arrays_of_huggingface_by_hand():
    """Class tokens before the patches, positions over both, the bridge in keys and values."""
    a = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}
    model = from_huggingface(a, CONFIG)
    assert model.config.decoder_start_id == 2
    assert model.config.eos_ids == (2,)  # of the decoder's config
    assert model.config.tied_logits
    images = RNG.normal(size=(3, 5, 4, 9))
    trace = rs.Trace("encoder.embed", "encoder.final", "decoder.layers.0.cross_attention.k")
    memory = rs.encode(model, rs.patches(images, (2, 3)), tap=trace)
    projection = "encoder.embeddings.patch_embeddings.projection"
    patches = conv(images, a[f"{projection}.weight"], 2, 3) + a[f"{projection}.bias"]
    tokens = [a[f"encoder.embeddings.{name}"] for name in ("cls_token", "distillation_token")]
    x = np.concatenate([*(np.repeat(t, 3, axis=0) for t in tokens), patches], axis=1)
    x = x + a["encoder.embeddings.position_embeddings"]
    np.testing.assert_allclose(trace["encoder.embed"], x, rtol=0, atol=1e-12)
    variance = x.var(axis=-1, keepdims=True)
    h = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-12)
    h = h * a["encoder.layernorm.weight"] + a["encoder.layernorm.bias"]
    np.testing.assert_allclose(memory.hidden, h, rtol=0, atol=1e-12)
    bridged = h @ a["enc_to_dec_proj.weight"].T + a["enc_to_dec_proj.bias"]
    for found, part in ((memory.keys[0], "k_proj"), (memory.values[0], "v_proj")):
        name = f"{INSIDE}layers.0.encoder_attn.{part}"
        expected = bridged @ a[f"{name}.weight"].T + a[f"{name}.bias"]
        np.testing.assert_allclose(
            found.transpose(0, 2, 1, 3).reshape(3, 8, E), expected, rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(
    ("side", "field", "value", "kind", "said"),
    [
        ("encoder", "model_type", "swin", rs.UnsupportedFeature, "'swin'.*decoder alone"),
        ("decoder", "model_type", "gpt2", rs.UnsupportedFeature, "'gpt2'"),
        ("encoder", "hidden_act", "tanh", rs.UnsupportedFeature, "hidden_act = 'tanh'"),
        ("encoder", "patch_size", 0, ValueError, "patch_size"),
        ("encoder", "image_size", [1, 2, 3], ValueError, "image_size"),
        ("encoder", "image_size", 2**30, ValueError, "position"),
        ("encoder", "num_channels", 3, ValueError, r"\(6, 5, 2, 3\)"),
        ("decoder", "decoder_layers", 2**30, ValueError, "layers"),
        (
            "decoder",
            "use_learned_position_embeddings",
            False,
            rs.UnsupportedFeature,
            "decoder_start_token_id = pad_token_id",
        ),
    ],
)
def test_configs_that_do_not_fit_raise(side, field, value, kind, said):
    a = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}
    config = CONFIG | {side: CONFIG[side] | {field: value}, "decoder_start_token_id": 1}
    with pytest.raises(kind, match=said):
        from_huggingface(a, config)


def test_patches_of_x_transformers_by_hand():
    """It has channels last in a patch, and norms before and after the projection."""
    p, channels, d, layers = 2, 3, 5, {"depth": 1, "heads": 2, "attn_dim_head": 2}
    attention = {
        "to_q.weight": (4, d),
        "to_k.weight": (4, d),
        "to_v.weight": (4, d),
        "to_out.weight": (d, 4),
    }
    feed_forward = {
        "ff.0.0.weight": (4 * d, d),
        "ff.0.0.bias": (4 * d,),
        "ff.2.weight": (d, 4 * d),
        "ff.2.bias": (d,),
    }

    def stack(prefix, *sublayers):
        at = f"{prefix}attn_layers."
        shapes = {f"{at}final_norm.gamma": (d,)}
        for i, sublayer in enumerate(sublayers):
            shapes |= {f"{at}layers.{i}.0.0.gamma": (d,)}
            shapes |= {f"{at}layers.{i}.1.{name}": shape for name, shape in sublayer.items()}
        return shapes

    shapes = {
        "encoder.pos_embedding": (1, 9, d),
        "encoder.patch_to_embedding.0.gamma": (p * p * channels,),
        "encoder.patch_to_embedding.1.weight": (d, p * p * channels),
        "encoder.patch_to_embedding.1.bias": (d,),
        "encoder.patch_to_embedding.2.gamma": (d,),
        **stack("encoder.", attention, feed_forward),
        "decoder.net.token_emb.emb.weight": (VOCABULARY, d),
        "decoder.net.pos_emb.emb.weight": (ROOM, d),
        "decoder.net.to_logits.weight": (VOCABULARY, d),
        **stack("decoder.net.", attention, attention, feed_forward),
    }
    a = {name: RNG.normal(size=shape) for name, shape in shapes.items()}
    options = {
        "dim": d,
        **{f"enc_{k}": v for k, v in layers.items()},
        "enc_image_size": 3 * p,
        "enc_patch_size": p,
        "enc_channels": channels,
        **{f"dec_{k}": v for k, v in layers.items()},
        "dec_num_tokens": VOCABULARY,
        "dec_max_seq_len": ROOM,
    }
    model = from_x_transformers(a, options, decoder_start_id=1, eos_ids=(2,))
    images = RNG.normal(size=(2, channels, 3 * p, 3 * p))
    trace = rs.Trace("encoder.embed")
    rs.encode(model, rs.patches(images, p), tap=trace)

    def norm(x, gain):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * gain

    patch = "encoder.patch_to_embedding."
    for b, i in np.ndindex(2, 9):
        row, column = divmod(i, 3)
        cut = images[b, :, row * p : (row + 1) * p, column * p : (column + 1) * p]
        x = norm(np.moveaxis(cut, 0, -1).ravel(), a[f"{patch}0.gamma"])
        x = norm(a[f"{patch}1.weight"] @ x + a[f"{patch}1.bias"], a[f"{patch}2.gamma"])
        expected = x + a["encoder.pos_embedding"][0, i]
        np.testing.assert_allclose(trace["encoder.embed"][b, i], expected, rtol=0, atol=1e-12)
