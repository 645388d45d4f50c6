"""Configs: complete, checked field by field, and the same after a trip through JSON."""

import dataclasses
import json

import numpy as np
import pytest
from arrangements import small_x_transformers
from hypothesis import given
from naming import raises_naming

import refseq2seq as rs
from refseq2seq import config as configs
from refseq2seq.testing import strategies

CONFIG = small_x_transformers(6, (5, 7), (11, 13), (2, 3), n_heads=2, d_k=3)
NORM = CONFIG.encoder.norm
ATTENTION = CONFIG.decoder.self_attention
FEED_FORWARD = CONFIG.encoder.feed_forward
LEARNED = CONFIG.encoder.positions
SINUSOIDAL = configs.SinusoidalPositions(layout="interleaved", offset=0, scale=1.0)
ROTARY = configs.RotaryPositions(d_rotary=2, base=10000.0, pairing="halves")
ALIBI = configs.AlibiPositions(slopes=(0.5, 0.25))
BUCKETED = configs.BucketedPositions(
    n_buckets=8, max_distance=16, bidirectional=True, per_layer=False, scale=1.0
)
FRAME_LAYER = configs.FrameLayerConfig(
    d_out=5, window=3, stride=2, padding=1, bias=True, activation="none", norm_before=NORM,
    norm_after=None,
)  # fmt: skip
FRAMES = configs.FrameInput(n_features=6, layers=(), n_class_tokens=1)
WINDOW = configs.WindowConfig(back=2, ahead=0)
PARTS = [CONFIG, CONFIG.encoder, NORM, ATTENTION, FEED_FORWARD, LEARNED, SINUSOIDAL]
PARTS += [ROTARY, ALIBI, BUCKETED, CONFIG.encoder.input, FRAME_LAYER, FRAMES, WINDOW]


def name(config):
    return type(config).__name__


@given(config=strategies.configs())
def test_json_round_trip_of_any_config(config):
    text = json.dumps(config.to_dict(), allow_nan=False)
    again = rs.ModelConfig.from_dict(json.loads(text))
    assert again == config
    assert hash(again) == hash(config)


every_part = pytest.mark.parametrize("config", PARTS, ids=name)


@every_part
def test_no_field_has_a_default_and_none_can_be_set(config):
    for field in dataclasses.fields(config):
        assert field.default is dataclasses.MISSING
        assert field.default_factory is dataclasses.MISSING
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, getattr(config, field.name))


@pytest.mark.parametrize("wrong", [object(), "wrong", -1, -1.0, np.float64(1), [], ("wrong",), {}])
@every_part
def test_each_field_of_another_type_raises(config, wrong):
    for field in dataclasses.fields(config):
        if type(wrong) is float and field.name in ("scale", "embedding_scale", "logits_scale"):
            continue  # a number like another
        with pytest.raises((TypeError, ValueError), match=f"{name(config)}.{field.name} must"):
            dataclasses.replace(config, **{field.name: wrong})


@every_part
def test_from_dict_of_missing_or_unknown_fields_raises(config):
    fields = config.to_dict()
    for missing in dataclasses.fields(config):
        rest = {key: value for key, value in fields.items() if key != missing.name}
        with raises_naming(ValueError, name(config), f"'{missing.name}'"):
            type(config).from_dict(rest)
    with raises_naming(ValueError, name(config), "['more']"):
        type(config).from_dict(fields | {"more": 1})
    with raises_naming(TypeError, name(config), "NoneType"):
        type(config).from_dict(None)


def test_from_dict_names_the_place():
    fields = CONFIG.to_dict()
    del fields["decoder"]["self_attention"]["scale"]
    with raises_naming(ValueError, "ModelConfig.decoder.self_attention lacks", "scale"):
        rs.ModelConfig.from_dict(fields)
    fields = CONFIG.to_dict()
    fields["encoder"]["positions"]["type"] = "absolute"
    with raises_naming(ValueError, "encoder.positions.type", "'sinusoidal'", "'absolute'"):
        rs.ModelConfig.from_dict(fields)


ENCODER, DECODER = CONFIG.encoder, CONFIG.decoder
ONE_SLOPE = configs.AlibiPositions(slopes=(1.0,))
WIDE, ODD = (dataclasses.replace(ROTARY, d_rotary=d_rotary) for d_rotary in (4, 1))
WITH_REGISTERS = dataclasses.replace(DECODER, n_register_tokens=1)
EMPTY, OF_FRAMES = (dataclasses.replace(DECODER, **x) for x in ({"n_layers": 0}, {"input": FRAMES}))
NARROW = dataclasses.replace(FRAMES, layers=(FRAME_LAYER,))


@pytest.mark.parametrize(
    ("config", "changes", "names"),
    [
        (NORM, {"eps": float("nan")}, ["NormConfig.eps", "nan"]),
        (NORM, {"eps": float("inf")}, ["NormConfig.eps", "inf"]),
        (ATTENTION, {"n_heads": 0}, ["AttentionConfig.n_heads", "got 0"]),
        (ATTENTION, {"d_k": True}, ["AttentionConfig.d_k", "got bool"]),
        (ATTENTION, {"n_kv_heads": 3}, ["n_kv_heads", "n_heads = 2", "got 3"]),
        (ATTENTION, {"biases": ("q", "x")}, ["biases", "('q', 'k', 'v', 'o')", "got 'x'"]),
        (FEED_FORWARD, {"d_ff": 0}, ["FeedForwardConfig.d_ff", "got 0"]),
        (FEED_FORWARD, {"biases": ("gate",)}, ["biases", "'gate'", "gated"]),
        (LEARNED, {"offset": 11}, ["n_positions", "offset = 11", "got 11"]),
        (ROTARY, {"base": 0.0}, ["RotaryPositions.base", "got 0.0"]),
        (BUCKETED, {"n_buckets": 3}, ["n_buckets", "got 3"]),
        (BUCKETED, {"max_distance": 2}, ["max_distance", "more than 2"]),
        (CONFIG, {"decoder": EMPTY}, ["ModelConfig.decoder", "layer"]),
        (CONFIG, {"decoder": OF_FRAMES}, ["ModelConfig.decoder", "tokens"]),
        (ENCODER, {"input": NARROW}, ["FrameInput.layers", "d_model = 6", "got 5"]),
        (ENCODER, {"windows": (WINDOW,)}, ["windows", "n_layers = 2"]),
        (ENCODER, {"windows": (WINDOW, None), "n_register_tokens": 1}, ["n_register_tokens", "1"]),
        (FRAME_LAYER, {"padding": 2}, ["FrameLayerConfig.padding", "window = 3", "got 2"]),
        (FRAME_LAYER, {"stride": 0}, ["FrameLayerConfig.stride", "got 0"]),
        (ATTENTION, {"softcap": 0.0}, ["AttentionConfig.softcap", "got 0.0"]),
        (ATTENTION, {"softcap": 1}, ["AttentionConfig.softcap", "int"]),
        (CONFIG, {"logits_softcap": -1.0}, ["ModelConfig.logits_softcap", "got -1.0"]),
        (ENCODER, {"relative_positions": ONE_SLOPE}, ["slopes", "2", "got 1"]),
        (ENCODER, {"relative_positions": WIDE}, ["d_rotary", "d_k = 3", "got 4"]),
        (ENCODER, {"relative_positions": ODD}, ["d_rotary", "d_k = 3", "got 1"]),
        (CONFIG, {"encoder": DECODER}, ["ModelConfig.encoder.cross_attention"]),
        (CONFIG, {"decoder": ENCODER}, ["ModelConfig.decoder.cross_attention"]),
        (CONFIG, {"pad_id": 7}, ["pad_id", "0 to 6", "got 7"]),
        (CONFIG, {"eos_ids": (2, 7)}, ["eos_ids", "7"]),
        (CONFIG, {"decoder_start_id": 7}, ["decoder_start_id", "7"]),
        (CONFIG, {"tied_embeddings": True}, ["tied_embeddings", "(5, 6)", "(7, 6)"]),
        (CONFIG, {"decoder": WITH_REGISTERS}, ["ModelConfig.decoder.n_register_tokens"]),
    ],
)
def test_values_that_do_not_go_together_raise(config, changes, names):
    with raises_naming((TypeError, ValueError), *names):
        dataclasses.replace(config, **changes)


def test_max_length_is_that_of_the_learned_table():
    assert (ENCODER.max_length, DECODER.max_length) == (11, 13)
    shifted = dataclasses.replace(LEARNED, offset=2)
    assert dataclasses.replace(ENCODER, positions=shifted).max_length == 9
    assert dataclasses.replace(ENCODER, positions=SINUSOIDAL).max_length is None
    assert dataclasses.replace(ENCODER, positions=None).max_length is None
