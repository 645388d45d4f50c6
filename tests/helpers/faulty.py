"""Our model as functions, and faulty ones: each fault with the properties that must find it."""

import dataclasses
import re

import arrangements
import numpy as np
from arrangements import small_x_transformers

import refseq2seq as rs
from refseq2seq.config import FrameInput
from refseq2seq.testing import properties

CONFIG = small_x_transformers(6, (17, 13), (11, 19), (1, 2), n_heads=2, d_k=3, eos_ids=())
MODEL = rs.Model.random(CONFIG, 0, "float64")
_LAYERS = (
    arrangements.frame_layer(7, window=3, stride=1, padding=1),
    arrangements.frame_layer(6, window=3, stride=2, padding=0),
)
LISTENER = rs.Model.random(arrangements.reading_frames(CONFIG, 5, _LAYERS, 1), 0, "float64")
EOS = (2, 5, 11)  # greedy decoding of a random model comes to one now and then


def ours(model=MODEL, tap=rs.no_tap, **replaced):
    """Our model, as functions that may be replaced by faulty ones."""

    def begin(memory):
        cache = rs.new_cache(model, memory.batch, 32)
        return lambda tokens: rs.decode(model, tokens, memory, cache=cache, tap=tap)

    def generate(source, mask, n):
        options = {"source_mask": mask, "max_new_tokens": n, "eos_ids": EOS, "tap": tap}
        return rs.generate(model, source, **options).tokens

    c = model.config
    of_source = {
        "source_vocab_size": c.encoder.vocab_size,
        "max_source_length": c.encoder.max_length,
    }
    if isinstance(c.encoder.input, FrameInput):
        of_source = {"source_features": c.encoder.input.n_features, "min_source_length": 3}
        of_source |= {"padding": ("right",)}
    functions = {
        "encode": lambda source, mask: rs.encode(model, source, mask, tap=tap),
        "logits": lambda memory, target: rs.decode(model, target, memory, tap=tap),
        "begin": begin,
        "generate": generate,
    }
    return properties.Implementation(
        **functions | replaced,
        **of_source,
        target_vocab_size=c.decoder.vocab_size,
        start_id=c.decoder_start_id,
        eos_ids=EOS,
        pad_id=c.pad_id,
        max_target_length=c.decoder.max_length,
    )


def tapped(function, pattern, **more):
    """Ours with ``function`` applied to every quantity whose name matches, in all that it does."""
    return ours(tap=tap_of(function, pattern), **more)


def tap_of(function, pattern):
    return rs.FunctionTap(lambda name, x: function(x) if re.fullmatch(pattern, name) else x)


def nan_at_the_end(x):
    x = x.copy()
    x[..., -1] = np.nan
    return x


def dropout(x, rng=np.random.default_rng(0)):  # noqa: B008
    return x * rng.integers(0, 2, x.shape)


def seeing_everything(weights):
    return 0.9 * weights + 0.1 / weights.shape[-1]


def positions_of(stack, places):
    """The learned positions of those places, (batch, n, d_model), or of (n,) for all rows."""
    c, p = getattr(MODEL.config, stack), getattr(MODEL.params, stack)
    return p.positions[places + c.positions.offset] * c.positions.scale


def writing_encode(source, mask):
    memory = rs.encode(MODEL, source, mask)
    source[:, 0] = 0
    return memory


def buffered():
    buffer = np.zeros((4, 32, MODEL.config.decoder.vocab_size))

    def keep(logits):
        buffer[: logits.shape[0], : logits.shape[1]] = logits
        return buffer[: logits.shape[0], : logits.shape[1]]

    return keep


def last_encoded():
    kept = []

    def encode(source, mask):
        kept[:] = [rs.encode(MODEL, source, mask)]
        return kept[0]

    return ours(encode=encode, logits=lambda memory, target: rs.decode(MODEL, target, kept[0]))


def wearing_out():
    def logits(memory, target):
        out = rs.decode(MODEL, target, memory[0])
        values = tuple(0.9 * v for v in memory[0].values)
        memory[0] = dataclasses.replace(memory[0], values=values)
        return out

    encode = lambda source, mask: [rs.encode(MODEL, source, mask)]  # noqa: E731
    return ours(encode=encode, logits=logits, begin=None, generate=None)


def at_most(n, function, argument):
    def checked(*args):
        if args[argument].shape[1] > n:
            raise IndexError(f"place {n} of a table of {n}")
        return function(*args)

    return checked


def last_always_real(source, mask):
    if mask is not None:
        mask[:, -1] = True
    return rs.encode(MODEL, source, mask)


def positions_by(place_of):
    """Ours with another rule for the positions of a masked source."""

    def encode(source, mask):
        if mask is None:
            return rs.encode(MODEL, source)
        places = np.maximum(place_of(mask), 0)
        tap = tap_of(lambda x: positions_of("encoder", places), "encoder.positions")
        return rs.encode(MODEL, source, mask, tap=tap)

    return ours(encode=encode)


def mask_only_across(source, mask):
    return dataclasses.replace(rs.encode(MODEL, source), mask=mask)


def shifted(target):
    return np.concatenate([target[:, :1], target[:, :-1]], axis=1)


def one_layer_without_positions():
    decoder = dataclasses.replace(MODEL.config.decoder, n_layers=1)
    config = dataclasses.replace(MODEL.config, decoder=decoder)
    tap = tap_of(lambda x: 0 * x, r".*decoder\.positions")
    return ours(rs.Model.random(config, 0, "float64"), tap=tap)


def begin_with(feed_of):
    """Ours with a faulty function that feeds the cache."""

    def begin(memory):
        cache = rs.new_cache(MODEL, memory.batch, 32)
        return lambda tokens: feed_of(memory, cache, tokens)

    return ours(begin=begin)


def always_at_place_0(memory, cache, tokens):
    first = np.zeros(len(tokens), dtype=int)
    at_0 = tap_of(lambda x: positions_of("decoder", first[: len(x)]), "decoder.positions")
    tap = at_0 if tokens.shape[1] == 1 else rs.no_tap
    return rs.decode(MODEL, tokens, memory, cache=cache, tap=tap)


def leaking_in_pieces(memory, cache, tokens):
    leak = tap_of(seeing_everything, r".*self_attention\.weights")
    tap = leak if tokens.shape[1] > 1 else rs.no_tap
    return rs.decode(MODEL, tokens, memory, cache=cache, tap=tap)


def one_cache_for_all():
    caches = {}

    def begin(memory):
        cache = caches.setdefault(id(memory), rs.new_cache(MODEL, memory.batch, 32))
        caches[id(cache)] = memory  # its id is not given to another
        return lambda tokens: rs.decode(MODEL, tokens, memory, cache=cache)

    return ours(begin=begin)


def views_of_a_cache():
    keep = buffered()
    return begin_with(lambda m, cache, tokens: keep(rs.decode(MODEL, tokens, m, cache=cache)))


def generating(change=lambda tokens: tokens, more=0, **options):
    def generate(source, mask, n):
        given = {"source_mask": mask, "eos_ids": EOS} | options
        return change(rs.generate(MODEL, source, max_new_tokens=n + more, **given).tokens)

    return ours(generate=generate)


def ended_at_the_limit(tokens):
    tokens[:, -1] = np.where(np.isin(tokens, EOS).any(axis=1), tokens[:, -1], EOS[0])
    return tokens


def listening(change_memory=None, change_frames=None):
    """Ours of frames, with a fault in the memory, given its mask of frames, or in the frames."""

    def encode(source, mask):
        source = source if change_frames is None else change_frames(source)
        memory = rs.encode(LISTENER, source, mask)
        return (
            memory if change_memory is None or mask is None else change_memory(memory, source, mask)
        )

    return ours(LISTENER, encode=encode, generate=None)


def mask_without_stride(memory, source, mask):
    n = memory.hidden.shape[1]
    first = np.pad(mask, ((0, 0), (1, 0)), constant_values=True)
    return dataclasses.replace(memory, mask=first[:, :n])


def padding_attended_to(memory, source, mask):
    unmasked = rs.encode(LISTENER, source)
    return rs.project_memory(LISTENER, unmasked.hidden, memory.mask)


def padding_repeated(memory, source, mask):
    """The frames are padded with their last, instead of zeros, before the convolutions."""
    last = np.take_along_axis(source, mask.sum(axis=1)[:, None, None] - 1, axis=1)
    unmasked = rs.encode(LISTENER, np.where(mask[:, :, None], source, last))
    return rs.project_memory(LISTENER, unmasked.hidden, memory.mask)


def without_the_last_feature(source):
    return source * (np.arange(source.shape[-1]) < source.shape[-1] - 1)


def of_two_frames_the_mean(source):
    """The order of neighbours is lost."""
    return np.broadcast_to(source.mean(axis=1, keepdims=True), source.shape)


def wrapped(tokens):
    return tokens % (MODEL.config.encoder.vocab_size - 1)


FAULTS = {
    "NaN in the logits": (tapped(nan_at_the_end, "logits"), {"finite"}),
    "dropout left on": (tapped(dropout, r".*feed_forward\.hidden"), {"deterministic"}),
    "the source is written to": (ours(encode=writing_encode), {"inputs_stay"}),
    "logits in one buffer": (tapped(buffered(), "logits"), {"results_stay"}),
    "the last memory is used": (last_encoded(), {"memory_is_its_own"}),
    "a memory wears out": (wearing_out(), {"memory_serves_again"}),
    "positions end early in the source": (
        ours(encode=at_most(10, lambda s, m: rs.encode(MODEL, s, m), 0)), {"longest_source"},
    ),
    "positions end early in the target": (
        ours(logits=at_most(18, lambda m, t: rs.decode(MODEL, t, m), 1)), {"longest_target"},
    ),
    "the future is seen": (
        tapped(seeing_everything, r"decoder.*self_attention\.weights"), {"causality"},
    ),
    "the row's number is added": (
        tapped(lambda x: x + np.arange(len(x))[:, None, None], "logits"), {"batch_order"},
    ),
    "the batch's mean is taken off": (
        tapped(lambda x: x - x.mean(axis=0) / 9, r"encoder\.final"), {"row_alone"},
    ),
    "masked sources are scaled": (
        ours(encode=lambda s, m: rs.encode(
            MODEL, s, m, tap=tap_of(lambda x: x * (1 if m is None else 1.1), r"encoder\.final")
        )), {"full_mask"},
    ),
    "the encoder has no mask": (ours(encode=mask_only_across), {"padding_content"}),
    "the last place is never masked": (ours(encode=last_always_real), {"padding_right"}),
    "positions count padding": (
        positions_by(lambda mask: np.broadcast_to(np.arange(mask.shape[1]), mask.shape)),
        {"padding_left"},
    ),
    "positions count from the first real token": (
        positions_by(lambda mask: np.arange(mask.shape[1]) - mask.argmax(axis=1)[:, None]),
        {"padding_between"},
    ),
    "no cross-attention": (
        tapped(lambda x: 0 * x, r".*cross_attention\.out"), {"source_counts", "source_order"},
    ),
    "source ids wrap": (
        ours(encode=lambda s, m: rs.encode(MODEL, wrapped(s), m)), {"last_id_counts"},
    ),
    "no source positions": (tapped(lambda x: 0 * x, r"encoder\.positions"), {"source_order"}),
    "the target is shifted twice": (
        ours(logits=lambda m, t: rs.decode(MODEL, shifted(t), m)), {"target_counts"},
    ),
    "no target positions": (one_layer_without_positions(), {"target_order"}),
    "cached positions stay at 0": (begin_with(always_at_place_0), {"cached"}),
    "pieces see what follows": (begin_with(leaking_in_pieces), {"cached_in_pieces"}),
    "one cache for all": (one_cache_for_all(), {"cache_begins_empty"}),
    "cached logits in one buffer": (views_of_a_cache(), {"cached_results_stay"}),
    "a hidden penalty": (
        generating(choose=rs.greedy(rs.repetition_penalty(1.5))), {"greedy"},
    ),
    "EOS forced at the limit": (generating(ended_at_the_limit), {"generation_goes_on"}),
    "the start token counted": (generating(lambda tokens: tokens[:, :-1]), {"generation_ends"}),
    "one token too many": (generating(more=1), {"generation_ends"}),
    "no end": (generating(eos_ids=()), {"padding_after_end"}),
    "generation without the mask": (generating(source_mask=None), {"generation_alone"}),
    "a feature is cut off": (
        listening(change_frames=without_the_last_feature), {"features_count"},
    ),
    "frames in any order": (
        listening(change_frames=of_two_frames_the_mean), {"source_order"},
    ),
    "the mask of frames keeps its length": (listening(mask_without_stride), {"padding_right"}),
    "padded frames are attended to": (
        listening(padding_attended_to), {"padding_right", "padding_content"},
    ),
    "frames are padded with the last": (listening(padding_repeated), {"padding_right"}),
}  # fmt: skip
