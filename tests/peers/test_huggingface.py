"""Live against Hugging Face transformers: the same logits, the same tokens, the same samples.

transformers computes some things in float32 whatever the model's dtype: T5's norms, the
tables of sinusoids, and the logits that `generate` chooses from. For comparisons to 1e-12, the
first two are computed in float64 instead; one test measures the difference that they make.
`rs.like.huggingface` rounds the logits in the same way.
"""

import re
from functools import partial

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")

import torch
import transformers
from comparisons import (
    EPS32,
    MERGE,
    Batch,
    add_lora,
    assert_same_model,
    compiled,
    count_near_ties,
    peft_model,
)
from hf_models import (
    CASES,
    EOS,
    PAD,
    error_of_logits,
    generated,
    logits,
    make_exact,
    random_batch,
    random_model,
)

import refseq2seq as rs
from refseq2seq.convert import UnsupportedFeature, from_huggingface
from refseq2seq.convert.huggingface import FAMILIES
from refseq2seq.params import named_arrays

N_MODELS, N_NEW = 30, 9


def is_rounded_apart(step, row, before):
    """Both choose from logits rounded to float32, which a tie may round apart."""
    return step.margin[row] <= 2 * EPS32 * abs(step.logits[row]).max()


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_tokens(name, say):
    worst, near_ties, ended = 0.0, 0, 0
    for seed in range(N_MODELS):
        theirs = random_model(name, seed)
        ours = from_huggingface(theirs)
        batch = random_batch(theirs, seed, left=CASES[name].left_padding and seed % 2 == 1)
        worst = max(worst, error_of_logits(ours, theirs, batch))
        start = np.full((3, 1), ours.config.decoder_start_id)
        prefix = np.concatenate([start, batch.target[:, :3]], axis=1) if seed % 3 == 2 else None
        options = {"max_new_tokens": N_NEW, "prefix": prefix}
        expected = generated(theirs, batch, use_cache=seed % 5 != 0, **options)
        for use_cache in (True, False):
            how = {"source_mask": batch.mask, "choose": rs.like.huggingface(), **options}
            steps = list(rs.decode_steps(ours, batch.source, use_cache=use_cache, **how))
            near_ties += count_near_ties(steps, expected, PAD, is_rounded_apart)
        ended += int(steps[-1].finished.sum())
    say(f"{name}: logits within {worst:.1e}, {near_ties} of 180 rows at near-ties")
    assert worst < 1e-12
    assert ended > 5, "the test must see ends"


@pytest.mark.parametrize("name", CASES)
def test_samples_under_the_same_noise(name, say):
    near_ties = 0
    for seed in range(N_MODELS):
        theirs = random_model(name, seed)
        ours = from_huggingface(theirs)
        batch = random_batch(theirs, seed)
        options = {
            "do_sample": True,
            "temperature": (0.7, 1.0, 1.8)[seed % 3],
            "top_k": (5, 0, 11)[seed % 3],
            "top_p": (0.9, 1.0, 0.6, 0.8)[seed % 4],
        }
        torch.manual_seed(seed)
        expected = generated(theirs, batch, max_new_tokens=N_NEW, **options)
        torch.manual_seed(seed)
        shape = (len(batch.source), ours.config.decoder.vocab_size)
        noise = np.stack([torch.empty(shape).exponential_().numpy() for _ in range(N_NEW)])
        choose = rs.like.huggingface(**options, pick=partial(rs.exponential_race, noise))
        how = {"source_mask": batch.mask, "max_new_tokens": N_NEW, "choose": choose}
        steps = list(rs.decode_steps(ours, batch.source, **how))

        def is_tie(step, row, before, noise=noise):
            """The two leaders of the race are nearer than float32 can tell apart."""
            probs = np.exp(step.scores[row].astype("float64") - step.scores[row].max())
            second, first = np.sort(probs / noise[step.index, row])[-2:]
            return first / second - 1 < 64 * EPS32

        near_ties += count_near_ties(steps, expected, PAD, is_tie)
    say(f"{name}: {near_ties} of 90 rows at near-ties")


@pytest.mark.parametrize("name", ["T5 1.0", "mT5", "UMT5", "Marian", "Pegasus", "M2M100"])
def test_float32_parts_of_float64_models(name):
    """The norms and sinusoids that transformers computes in float32 make all the difference."""
    theirs = random_model(name, 0, exact=False)
    batch = random_batch(theirs, 0)
    ours = from_huggingface(theirs)
    assert 1e-10 < error_of_logits(ours, theirs, batch) < 1e-5
    make_exact(theirs)
    assert error_of_logits(ours, theirs, batch) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_float32(name):
    """As most people run them. 30 ulps: an inner product of 24 terms, a few layers deep."""
    theirs = random_model(name, 1).float()
    ours = from_huggingface(theirs)
    assert ours.dtype == np.float32
    assert error_of_logits(ours, theirs, random_batch(theirs, 1)) < 30 * EPS32


@pytest.mark.parametrize("name", ["BART", "T5 1.1", "Marian", "Pegasus"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_converted_exactly(name, dtype):
    theirs = random_model(name, 2).to(getattr(torch, dtype))
    widened = from_huggingface(theirs)
    assert widened.dtype == np.float32
    expected = dict(named_arrays(from_huggingface(theirs.double()).params))
    for path, x in named_arrays(widened.params):
        assert np.array_equal(x.astype("float64"), expected[path]), path


def test_converted_arrays_are_copies():
    theirs = random_model("BART", 0)
    ours = from_huggingface(theirs)
    with torch.no_grad():
        for x in theirs.parameters():
            x.add_(1)
    assert_same_model(ours, from_huggingface(random_model("BART", 0)))


def test_key_biases():
    """They do not change the logits: softmax ignores what is added to all scores of a query."""
    theirs = random_model("BART", 0)
    ours = from_huggingface(theirs).params
    encoder, decoder = theirs.model.encoder.layers[0], theirs.model.decoder.layers[0]
    for attention, params in (
        (encoder.self_attn, ours.encoder.layers[0].self_attention),
        (decoder.self_attn, ours.decoder.layers[0].self_attention),
        (decoder.encoder_attn, ours.decoder.layers[0].cross_attention),
    ):
        assert np.array_equal(params.b_k, attention.k_proj.bias.detach().numpy())


# Arrays and a config


def plain(theirs):
    arrays = {name: x.numpy() for name, x in theirs.state_dict().items()}
    return arrays, theirs.config.to_dict()


def test_state_dict_and_config_object():
    """Tensors of bfloat16 that require gradients."""
    theirs = random_model("BART", 0).bfloat16()
    model = from_huggingface(theirs)
    tensors = theirs.state_dict(keep_vars=True)
    assert any(x.requires_grad for x in tensors.values())
    assert_same_model(from_huggingface(tensors, theirs.config), model)
    assert_same_model(from_huggingface(tensors, theirs.config, theirs.generation_config), model)
    theirs.generation_config.eos_token_id = 7
    settings = theirs.generation_config
    for given in (from_huggingface(tensors, theirs.config, settings), from_huggingface(theirs)):
        assert given.config.eos_ids == (7,)


def test_arrays_of_bfloat16_by_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes: pip install '.[peers]'")
    theirs = random_model("T5 1.0", 0).bfloat16()
    arrays = {
        name: x.float().numpy().astype(ml_dtypes.bfloat16)
        for name, x in theirs.state_dict().items()
    }
    assert_same_model(from_huggingface(arrays, theirs.config), from_huggingface(theirs))


def with_compiled_parts(theirs):
    theirs.model.encoder.layers[0] = compiled(theirs.model.encoder.layers[0])
    theirs.model.decoder = compiled(theirs.model.decoder)
    return theirs


@pytest.mark.parametrize("change", [compiled, with_compiled_parts])
def test_compiled_models_convert_alike(change):
    model, theirs = from_huggingface(random_model("BART", 0)), change(random_model("BART", 0))
    assert_same_model(from_huggingface(theirs), model)
    assert any("_orig_mod." in name for name in theirs.state_dict())
    assert_same_model(from_huggingface(theirs.state_dict(), theirs.config), model)


@pytest.mark.parametrize("name", CASES)
def test_config_fields_are_required_or_completed_as_by_transformers(name):
    theirs = random_model(name, 0)
    arrays, config = plain(theirs)
    assert_same_model(from_huggingface(arrays, config), from_huggingface(theirs))
    needed = set()
    for field in config:
        others = {key: value for key, value in config.items() if key != field}
        completed = type(theirs.config).from_dict(others)
        if field == "forced_eos_token_id":  # no field, no rule
            completed.forced_eos_token_id = None
        try:
            model = from_huggingface(arrays, others)
        except ValueError as error:
            needed.add(field)
            if field not in str(error):  # then the arrays do not fit the class's value
                with pytest.raises(ValueError, match=re.escape(str(error))):
                    from_huggingface(arrays, completed)
        else:
            assert_same_model(model, from_huggingface(arrays, completed))
    assert {"vocab_size", "d_model", "eos_token_id", "model_type"} <= needed


def changed(value):
    """Other values of the same type; the strings that matter are activations."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [2 * value + 0.25]
    activations = ["relu", "gelu", "silu", "swish", "gelu_new", "tanh", "quick_gelu"]
    return activations if value in activations else []


REFUSED = {
    ("is_encoder_decoder", False),
    *(
        (field, name)
        for field in ("dense_act_fn", "activation_function")
        for name in ("tanh", "quick_gelu")
    ),
}


def with_field(theirs, field, value):
    """The same arrays in a model with another config."""
    config = type(theirs.config).from_dict(theirs.config.to_dict() | {field: value})
    altered = type(theirs)(config)
    altered.lm_head.weight = torch.nn.Parameter(altered.lm_head.weight.clone())
    altered.load_state_dict(theirs.state_dict(), assign=True)
    altered = altered.double().eval()
    make_exact(altered)
    return altered


@pytest.mark.parametrize("name", CASES)
def test_changed_config_fields_change_both_or_raise(name):
    """For any field of the config with another value: the same logits, or an error."""
    theirs = random_model(name, 0)
    batch = random_batch(theirs, 0)
    # no token is a pad token, now or after the change: M2M100 looks for them
    source, target = np.maximum(batch.source, PAD + 2), np.maximum(batch.target, PAD + 2)
    batch = Batch(source, np.ones_like(batch.mask), target)
    reference = logits(theirs, batch)
    effective = set()
    for field, value in theirs.config.to_dict().items():
        for other in changed(value):
            try:
                altered = with_field(theirs, field, other)
                expected = logits(altered, batch)
            except Exception:  # transformers does not take it, in one way or another
                continue
            if abs(expected - reference).max() > 1e-9:
                effective.add(field)
            if (field, other) in REFUSED:
                with pytest.raises(UnsupportedFeature, match=f"{field} = '?{other}"):
                    from_huggingface(altered)
                continue
            error = error_of_logits(from_huggingface(altered), altered, batch)
            assert error < 1e-12, f"{field} = {other}"
    assert effective >= ({"dense_act_fn"} if CASES[name].is_t5 else {"scale_embedding"})


# Errors

NAME = "model.decoder.layers.0.encoder_attn.k_proj.weight"


def without(arrays, *names):
    return {name: x for name, x in arrays.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: without(a, NAME), NAME),
        (lambda a: a | {NAME: a[NAME][:, 1:]}, rf"{NAME}.*\(12, 11\)|{NAME}.*\(24, 23\)"),
        (lambda a: a | {"classification_head.dense.weight": a[NAME]}, r"head\.dense\.weight"),
        (lambda a: a | {NAME: a[NAME].astype("int8")}, rf"{NAME}.*int8"),
        (lambda a: {f"module.{key}": x for key, x in a.items()}, r"module\.model.*prefix"),
    ],
)
def test_missing_unexpected_and_misshapen_arrays_raise(change, message):
    arrays, config = plain(random_model("BART", 0))
    with pytest.raises(ValueError, match=message):
        from_huggingface(change(arrays), config)


@pytest.mark.parametrize(
    ("family", "field", "value", "message"),
    [
        ("BART", "model_type", "led", "led"),
        ("BART", "activation_function", "tanh", "activation_function = 'tanh'"),
        ("BART", "normalize_before", True, "normalize_before = True"),
        ("BART", "quantization_config", {}, "quantization_config"),
        ("MVP", "use_prompt", True, "use_prompt = True"),
        ("Marian", "d_model", 13, "d_model = 13"),
    ],
)
def test_unsupported_config_fields_raise(family, field, value, message):
    arrays, config = plain(random_model(family, 0))
    with pytest.raises(UnsupportedFeature, match=message):
        from_huggingface(arrays, config | {field: value})


def test_old_config_fields_at_their_default():
    arrays, config = plain(random_model("BART", 0))
    old = config | {"normalize_before": False}
    assert_same_model(from_huggingface(arrays, old), from_huggingface(arrays, config))


def test_a_shifted_table_of_sinusoids_raises():
    arrays, config = plain(random_model("Marian", 0))
    name = "model.encoder.embed_positions.weight"
    with pytest.raises(UnsupportedFeature, match=name):
        from_huggingface(arrays | {name: np.roll(arrays[name], 1, axis=0)}, config)


@pytest.mark.parametrize(("dtype", "eps"), [("bfloat16", 2.0**-7), ("float16", 2.0**-10)])
@pytest.mark.parametrize(
    ("family", "table"), [("Marian", "weight"), ("Pegasus", "weight"), ("M2M100", "weights")]
)
def test_sinusoids_equal_up_to_the_rounding_of_their_dtype(family, table, dtype, eps):
    """With so many positions that the float32 angles of M2M100 make a difference."""
    theirs = random_model(family, 0)
    arrays, config = plain(theirs)
    longer = type(theirs)(type(theirs.config).from_dict(config | {"max_position_embeddings": 1021}))
    name = f"model.encoder.embed_positions.{table}"
    stored = getattr(longer.model.encoder.embed_positions, table).detach()
    rounded = stored.to(getattr(torch, dtype)).float().numpy()
    expected = from_huggingface(arrays, config)
    for right in (stored.numpy(), rounded):
        assert_same_model(from_huggingface(arrays | {name: right}, config), expected)
    off = rounded.copy()
    off[7] -= np.where(np.abs(off[7]) == np.abs(off[7]).max(), eps, 0)
    coarse = stored.numpy().copy()
    coarse[7] = rounded[7]  # the others are float32, so that all are held to that
    for wrong in (off, coarse):
        with pytest.raises(UnsupportedFeature, match=name):
            from_huggingface(arrays | {name: wrong}, config)


ARGUMENTS = [
    (lambda t, a, c: [torch.nn.Linear(2, 3)], TypeError, "Linear"),
    (lambda t, a, c: [a], TypeError, "config"),
    (lambda t, a, c: [t, c], TypeError, "config"),
    (lambda t, a, c: [t.model], UnsupportedFeature, "BartModel has no language-model head"),
    (lambda t, a, c: [None], TypeError, "got NoneType"),
    (lambda t, a, c: [a, None], TypeError, "^config must be .*got NoneType"),
    (lambda t, a, c: [a, "config.json"], TypeError, "^config must be .*got str"),
    (lambda t, a, c: [a, c, ["x"]], TypeError, "generation_config must be .*got list"),
    (
        lambda t, a, c: [{name: x.tolist() for name, x in a.items()}, c],
        TypeError,
        "final_logits_bias must be an array.*list",
    ),
    (lambda t, a, c: [{"weights": a}, c], TypeError, "weights must be an array.*dict"),
    (lambda t, a, c: [t.to("meta")], ValueError, "on the meta device"),
]


@pytest.mark.parametrize(("given", "error", "message"), ARGUMENTS)
def test_arguments_of_another_type_raise(given, error, message):
    theirs = random_model("BART", 0)
    with pytest.raises(error, match=message):
        from_huggingface(*given(theirs, *plain(theirs)))


SMALL = {"vocab_size": 11, "d_model": 4, "num_heads": 2, "d_kv": 2, "d_ff": 4, "num_layers": 1}
SMALL_BERT = {
    "vocab_size": 11,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 4,
}
EXPERTS = {"num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
OTHERS = {
    "longt5": ("LongT5", "ForConditionalGeneration", SMALL),
    "switch_transformers": ("SwitchTransformers", "ForConditionalGeneration", SMALL | EXPERTS),
    "bert": ("Bert", "Model", SMALL_BERT),
    "gpt2": ("GPT2", "LMHeadModel", {"vocab_size": 11, "n_embd": 4, "n_layer": 1, "n_head": 2}),
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_raise_before_anything_else_is_read(family, tmp_path):
    """None of these sets a start token; BERT has no head either, and GPT-2 no encoder."""
    name, head, sizes = OTHERS[family]
    config = getattr(transformers, f"{name}Config")(**sizes)
    theirs = getattr(transformers, f"{name}{head}")(config)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for given in ([theirs], [theirs.state_dict(), theirs.config], [{}, theirs.config], [tmp_path]):
        with pytest.raises(UnsupportedFeature, match=f"model_type = '{family}'"):
            from_huggingface(*given)


def test_one_stack_alone_raises():
    """But for a decoder that attends to a memory: test_vision.py."""
    config = random_model("Pegasus", 0).config
    with pytest.raises(UnsupportedFeature, match="is_encoder_decoder = False"):
        from_huggingface(transformers.PegasusForCausalLM(config))
    with pytest.raises(UnsupportedFeature, match=r"T5EncoderModel has no .*ConditionalGeneration"):
        from_huggingface(transformers.T5EncoderModel(random_model("T5 1.0", 0).config))


# Adapters


def test_adapters_around_a_model_raise():
    wrapper = peft_model()
    wrapper.base_model = random_model("BART", 0)
    for theirs in (wrapper, compiled(wrapper)):
        with pytest.raises(UnsupportedFeature, match=r"\(PeftModel\).*merge_and_unload"):
            from_huggingface(theirs)


def test_adapters_in_a_model_raise():
    theirs = random_model("BART", 0)
    add_lora(theirs.model.encoder.layers[0].self_attn, "q_proj")
    for given in ([theirs], [theirs.state_dict(), theirs.config]):
        with pytest.raises(UnsupportedFeature, match=MERGE):
            from_huggingface(*given)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.weight",
        "model.encoder.layers.0.fc1.base_layer.weight",
        "model.encoder.layers.0.fc1.lora_A.weight",
        "model.encoder.layers.0.fc1.lora_B.default.weight",
        "model.shared.lora_embedding_A.default",
        "lm_head.modules_to_save.default.weight",
    ],
)
def test_arrays_of_adapters_raise(name):
    arrays, config = plain(random_model("BART", 0))
    with pytest.raises(UnsupportedFeature, match=MERGE) as caught:
        from_huggingface(arrays | {name: np.ones((2, 2))}, config)
    assert name in str(caught.value)


# Special tokens


def test_special_tokens_come_from_the_generation_config():
    theirs = random_model("BART", 0)
    assert from_huggingface(theirs).config.eos_ids == EOS
    theirs.generation_config.decoder_start_token_id = 31
    theirs.generation_config.eos_token_id = 7
    theirs.generation_config.pad_token_id = 6
    config = from_huggingface(theirs).config
    assert (config.decoder_start_id, config.eos_ids, config.pad_id) == (31, (7,), 6)
    theirs.generation_config.decoder_start_token_id = None
    theirs.generation_config.bos_token_id = 30
    theirs.generation_config.pad_token_id = None
    config = from_huggingface(theirs).config
    assert (config.decoder_start_id, config.eos_ids, config.pad_id) == (30, (7,), 7)
    theirs.generation_config.bos_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        from_huggingface(theirs)
    given = from_huggingface(theirs, generation_config={"decoder_start_token_id": 29})
    assert given.config.decoder_start_id == 29


def test_rules_about_tokens_are_applied():
    theirs = random_model("M2M100", 4)
    theirs.generation_config.forced_bos_token_id = 9
    theirs.generation_config.forced_eos_token_id = 3
    theirs.generation_config.suppress_tokens = [20, 21, 22, 23, 24, 25, 26, 27, 28]
    theirs.generation_config.begin_suppress_tokens = [4, 5, 6, 7]
    theirs.generation_config.bad_words_ids = [[10]]
    ours = from_huggingface(theirs)
    batch = random_batch(theirs, 4)
    out = rs.generate(ours, batch.source, source_mask=batch.mask, max_new_tokens=N_NEW)
    assert (out.tokens[:, 0] == 9).all()
    expected = generated(theirs, batch, max_new_tokens=N_NEW)
    assert np.array_equal(out.tokens, expected)
    rules = "forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens"
    none = dict.fromkeys([*rules.split(), "bad_words_ids"])
    free = from_huggingface(theirs, generation_config=none)
    assert free.config.forced_bos_id is None
    theirs.generation_config.bad_words_ids = [[10, 11]]
    with pytest.warns(UserWarning, match=r"bad_words = \(\(10, 11\),\)") as caught:
        rs.generate(from_huggingface(theirs), batch.source, max_new_tokens=N_NEW)
    assert caught[0].filename == __file__


def test_every_family_has_a_case():
    """Those with files of their own: test_t5gemma.py, test_vision.py, test_whisper.py."""
    others = {"t5gemma", "trocr", "vision-encoder-decoder", "whisper"}
    assert {CASES[name].config.model_type for name in CASES} | others == set(FAMILIES)
