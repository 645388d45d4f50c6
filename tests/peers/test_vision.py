"""Live against the image models of Hugging Face transformers, and x-transformers' wrappers.

As in the other comparisons, the peers compute in float64 what they compute in float32 whatever the
model's dtype: transformers the sinusoids of TrOCR, x-transformers the softmax and its sinusoids.
"""

import types
import zlib

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")
pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")

import torch
import transformers
import x_transformers as xt
from comparisons import EPS32, Batch, assert_same_model, count_near_ties, relative_error
from einops import rearrange
from hf_models import EOS, PAD, randomize, sinusoids_in_float64
from searches import Counts
from xt_networks import CONVENTIONS, START, Network, check_greedy, close

import refseq2seq as rs
from refseq2seq.convert import UnsupportedFeature, from_huggingface, from_x_transformers

N_MODELS, N_NEW, VOCABULARY, ROOM = 30, 9, 41, 23

# By name: the encoder's class, options of the encoder, the decoder's class, options of the decoder.
CASES = {
    "ViT + TrOCR": ("ViT", {}, "TrOCR", {}),
    "DeiT + TrOCR": ("DeiT", {"qkv_bias": False}, "TrOCR", {"scale_embedding": True}),
    "ViT + TrOCR, sinusoids": ("ViT", {}, "TrOCR", {"use_learned_position_embeddings": False}),
    "DeiT + TrOCR, bare": (
        "DeiT",
        {"hidden_act": "gelu_new"},
        "TrOCR",
        {"layernorm_embedding": False, "activation_function": "relu", "tie_word_embeddings": False},
    ),
    "ViT + mBART": ("ViT", {}, "MBart", {"scale_embedding": True}),
    "DeiT + BART": ("DeiT", {}, "Bart", {"tie_word_embeddings": False}),
}


def random_model(name, seed):
    """A float64 model whose widths are equal, or are bridged by a projection or the decoder."""
    encoder, of_encoder, decoder, of_decoder = CASES[name]
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    torch.manual_seed(int(rng.integers(2**31)))
    width, d_model = 6 * int(rng.integers(1, 4)), 12 * int(rng.integers(1, 3))
    patch = [int(rng.integers(1, 4)), int(rng.integers(1, 4))] if seed % 2 else [2, 2]
    vit = getattr(transformers, f"{encoder}Config")(
        hidden_size=width,
        num_hidden_layers=int(rng.integers(1, 4)),
        num_attention_heads=int(rng.choice([1, 2, 3])),
        intermediate_size=int(rng.integers(9, 30)),
        layer_norm_eps=float(rng.choice([1e-12, 1e-3])),
        image_size=[patch[0] * int(rng.integers(1, 4)), patch[1] * int(rng.integers(2, 4))],
        patch_size=patch if seed % 2 else 2,
        num_channels=int(rng.integers(1, 4)),
        **of_encoder,
    )
    text = getattr(transformers, f"{decoder}Config")(
        vocab_size=VOCABULARY,
        d_model=d_model,
        decoder_layers=int(rng.integers(1, 4)),
        decoder_attention_heads=int(rng.choice([2, 3, 4])),
        decoder_ffn_dim=int(rng.integers(9, 30)),
        max_position_embeddings=ROOM,
        pad_token_id=PAD,
        eos_token_id=list(EOS),
        **({"cross_attention_hidden_size": width} if decoder == "TrOCR" and seed % 3 == 0 else {}),
        **of_decoder,
    )
    model = transformers.VisionEncoderDecoderModel(
        encoder=getattr(transformers, f"{encoder}Model")(vit),
        decoder=getattr(transformers, f"{decoder}ForCausalLM")(text),
    )
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=int(rng.choice([0, EOS[0], 7])),
        pad_token_id=PAD,
        eos_token_id=list(EOS),
    )
    model = model.double().eval()
    randomize(model)
    for path, x in model.encoder.named_parameters():  # of more than two axes
        x.data = torch.randn_like(x) / (x[0].numel() ** 0.5 if "projection.w" in path else 2)
    made_exact(model)
    return model


def made_exact(model):
    """Sinusoids in float64. They give a pad token no position, so its logit stays low."""
    sinusoids = getattr(model.decoder.model.decoder.embed_positions, "weights", None)
    if sinusoids is not None:
        n, d = sinusoids.shape
        sinusoids = sinusoids_in_float64(n, d, steps=d // 2 - 1)
        model.decoder.model.decoder.embed_positions.weights = sinusoids
        head = model.decoder.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        head.weight.data[PAD] = 0


def random_batch(model, seed):
    """Three images and targets to force."""
    rng, c = np.random.default_rng(seed), model.config.encoder
    images = rng.normal(size=(3, c.num_channels, *model.encoder.embeddings.image_size))
    return images, rng.integers(PAD + 1, VOCABULARY, size=(3, int(rng.integers(2, 12))))


def frames(model, images):
    size = model.config.encoder.patch_size
    return rs.patches(images, size if isinstance(size, int) else tuple(size))


def logits(model, images, target):
    with torch.no_grad():
        pixels, ids = torch.tensor(images), torch.tensor(target)
        return model(pixel_values=pixels, decoder_input_ids=ids).logits.numpy()


def outcome(model, images, **options):
    how = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": N_NEW}
    return model.generate(pixel_values=torch.tensor(images), do_sample=False, **how | options)


def is_rounded_apart(step, row, before):
    """Both choose from logits rounded to float32, which a tie may round apart."""
    return step.margin[row] <= 2 * EPS32 * abs(step.logits[row]).max()


@pytest.mark.parametrize("name", CASES)
def test_logits_and_tokens_of_huggingface(name, say):
    worst, near_ties, ended, counts, bridged = 0.0, 0, 0, Counts(), 0
    for seed in range(N_MODELS):
        theirs = random_model(name, seed)
        ours = from_huggingface(theirs)
        images, target = random_batch(theirs, seed)
        source = frames(theirs, images)
        computed = rs.forward(ours, source, target)
        worst = max(worst, relative_error(computed, logits(theirs, images, target)))
        bridged += hasattr(theirs, "enc_to_dec_proj")
        expected = outcome(theirs, images, use_cache=seed % 5 != 0).sequences[:, 1:].numpy()
        how = {"max_new_tokens": N_NEW, "choose": rs.like.huggingface()}
        for use_cache in (True, False):
            steps = list(rs.decode_steps(ours, source, use_cache=use_cache, **how))
            near_ties += count_near_ties(steps, expected, PAD, is_rounded_apart)
        ended += int(steps[-1].finished.sum())
        best = rs.beam_search(ours, source, beams=3, n_best=2, max_new_tokens=N_NEW)
        out = outcome(theirs, images, num_beams=3, num_return_sequences=2)
        tokens = out.sequences[:, 1:].numpy().reshape(3, 2, -1)
        counts.compare(best, tokens, out.sequences_scores.numpy().reshape(3, 2))
    say(f"{name}: logits within {worst:.1e}, {near_ties} of 180 rows at near-ties, beams: {counts}")
    assert worst < 1e-12
    assert ended > 5, "the test must see ends"
    assert bridged > 3, "the test must see projections of the memory"


@pytest.mark.parametrize("name", CASES)
def test_a_directory_gives_the_model_that_the_module_gives(name, tmp_path):
    for seed in range(4):
        theirs = random_model(name, seed)
        theirs.save_pretrained(tmp_path / str(seed))
        ours = from_huggingface(theirs)
        assert_same_model(rs.load(tmp_path / str(seed)), ours)
        arrays = {path: x.numpy() for path, x in theirs.state_dict().items()}
        given = from_huggingface(arrays, theirs.config, theirs.generation_config)
        assert_same_model(given, ours)


@pytest.mark.parametrize("name", CASES)
def test_a_decoder_alone_reads_the_output_of_any_encoder(name):
    """Donut's encoder is a Swin; its decoder, mBART's, is one of these."""
    for seed in range(10):
        whole = random_model(name, seed)
        theirs, d = whole.decoder, whole.decoder.config.d_model
        width = whole.config.decoder.to_dict().get("cross_attention_hidden_size") or d
        tokens = {"decoder_start_token_id": 7, "pad_token_id": PAD, "eos_token_id": list(EOS)}
        ours = from_huggingface(theirs, generation_config=tokens)
        rng = np.random.default_rng(seed)
        hidden, target = rng.normal(size=(3, 5, width)), random_batch(whole, seed)[1]
        mask = np.arange(5) < np.array([[5], [2], [3]])
        with torch.no_grad():
            expected = theirs(
                torch.tensor(target),
                encoder_hidden_states=torch.tensor(hidden),
                encoder_attention_mask=torch.tensor(mask, dtype=torch.long),
            ).logits.numpy()
        memory = rs.project_memory(ours, hidden, mask)
        assert relative_error(rs.decode(ours, target, memory), expected) < 1e-12
        assert relative_error(rs.forward(ours, hidden, target, mask), expected) < 1e-12
        greedy = rs.generate(ours, hidden, source_mask=mask, max_new_tokens=N_NEW)
        assert (
            greedy.tokens.tolist()
            == rs.generate(ours, memory, max_new_tokens=N_NEW).tokens.tolist()
        )


def changed(value):
    """Other values of the same type; the strings that matter are activations."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1]
    return ["relu", "gelu_new", "tanh"] if value in ("relu", "gelu", "gelu_new") else []


@pytest.mark.parametrize("name", CASES)
def test_changed_config_fields_change_both_or_raise(name):
    """For any field of either config: the same logits, or an error; sizes do not fit the arrays."""
    theirs = random_model(name, 4)
    images, target = random_batch(theirs, 4)
    reference, source, effective = logits(theirs, images, target), frames(theirs, images), set()
    arrays = theirs.state_dict()
    for side in ("encoder", "decoder"):
        fields = theirs.config.to_dict()
        for field, value in fields[side].items():
            for other in changed(value):
                given = fields | {side: fields[side] | {field: other}}
                try:
                    config = transformers.VisionEncoderDecoderConfig.from_dict(given)
                    altered = transformers.VisionEncoderDecoderModel(config)
                    altered.load_state_dict(arrays, assign=True)
                    altered = altered.double().eval()
                    made_exact(altered)
                    expected = logits(altered, images, target)
                except Exception:  # transformers does not take it, in one way or another
                    continue
                if abs(expected - reference).max() > 1e-9:
                    effective.add(field)
                if other == "tanh":
                    with pytest.raises(UnsupportedFeature, match=f"{field} = 'tanh'"):
                        from_huggingface(arrays, config, theirs.generation_config)
                    continue
                ours = from_huggingface(arrays, config, theirs.generation_config)
                found = rs.forward(ours, source, target)
                assert relative_error(found, expected) < 1e-12, f"{side}.{field} = {other}"
    assert {"hidden_act", "layer_norm_eps", "activation_function", "scale_embedding"} <= effective


@pytest.mark.parametrize(
    ("encoder", "decoder", "said"),
    [
        ("Swin", "TrOCR", r"encoder\.model_type = 'swin'.*decoder alone"),
        ("Beit", "TrOCR", r"encoder\.model_type = 'beit'.*decoder alone"),
        ("ViT", "GPT2", r"decoder\.model_type = 'gpt2'"),
        ("ViT", "Bert", r"decoder\.model_type = 'bert'"),
    ],
)
def test_other_encoders_and_decoders_raise(encoder, decoder, said):
    """Before anything else: a live module has no start token here."""
    parts = [getattr(transformers, f"{name}Config")() for name in (encoder, decoder)]
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    live = types.SimpleNamespace(config=config, can_generate=lambda: True)
    for given in ([{}, config], [live]):
        with pytest.raises(UnsupportedFeature, match=said):
            from_huggingface(*given)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("encoder.embeddings.distillation_token"), "no array .*distillation_token"),
        (lambda a: a.pop("enc_to_dec_proj.bias"), "no array enc_to_dec_proj.bias"),
        (
            lambda a: a.update({"enc_to_dec_proj.weight": np.ones((3, 5))}),
            r"enc_to_dec_proj.weight must have shape .*\(3, 5\)",
        ),
        (
            lambda a: a.update({"encoder.embeddings.position_embeddings": np.ones((1, 2, 3))}),
            r"position_embeddings must have shape .*\(1, 2, 3\)",
        ),
        (lambda a: a.update({"encoder.stray": np.ones(3)}), "encoder.stray"),
    ],
)
def test_missing_unexpected_and_misshapen_arrays_raise(change, said):
    theirs = next(
        model
        for model in (random_model("DeiT + TrOCR", seed) for seed in range(9))
        if hasattr(model, "enc_to_dec_proj")
    )
    arrays = {path: x.numpy() for path, x in theirs.state_dict().items()}
    change(arrays)
    with pytest.raises(ValueError, match=said):
        from_huggingface(arrays, theirs.config, theirs.generation_config)


# x-transformers

VIT, CONTINUOUS, TOKENS = (
    xt.ViTransformerWrapper,
    xt.ContinuousTransformerWrapper,
    xt.TransformerWrapper,
)
XT_CASES = {
    "ViT": (VIT, {}, {}),
    "ViT, post_emb_norm": (VIT, {"post_emb_norm": True, "emb_dropout": 0.1}, {}),
    "ViT, registers": (VIT, {"num_register_tokens": 3, "num_classes": 5}, {}),
    "ViT, rotary": (VIT, {}, {"rotary_pos_emb": True}),
    "ViT, rmsnorm": (VIT, {}, {"use_rmsnorm": True, "attn_kv_heads": 1}),
    "frames": (CONTINUOUS, {"dim_in": 5, "max_seq_len": 16}, {}),
    "frames of the model's width": (CONTINUOUS, {"max_seq_len": 16, "dim_out": 3}, {}),
    "frames without positions": (CONTINUOUS, {"dim_in": 5}, {}),
    "frames, sinusoids": (
        CONTINUOUS,
        {"dim_in": 5, "max_seq_len": 16, "scaled_sinu_pos_emb": True, "post_emb_norm": True},
        {},
    ),
    "frames, memory tokens, alibi": (
        CONTINUOUS,
        {"dim_in": 5, "max_seq_len": 16, "num_memory_tokens": 2},
        {"alibi_pos_bias": True},
    ),
    "tokens": (TOKENS, {"num_tokens": 13, "max_seq_len": 16}, {}),
}


class Wrappers(Network):
    """A pair of wrappers; the source is what we read."""

    @torch.no_grad()
    def encode(self, source, mask):
        if type(self.encoder) is not xt.ViTransformerWrapper:
            return super().encode(source, mask)
        p = self.encoder.patch_size
        images = rearrange(source, "b (h w) (c p q) -> b c (h p) (w q)", w=3, p=p, q=p)
        return {"context": self.encoder(torch.as_tensor(images), return_embeddings=True)}


def random_wrappers(rng, kind, of_wrapper, of_layers):
    """A network of random sizes with all parameters random, and a batch."""
    dim, n = int(rng.choice([10, 14, 22])), int(rng.integers(2, 10))
    layers = {
        prefix: {
            "dim": dim,
            "depth": int(rng.integers(1, 3)),
            "heads": int(rng.integers(2, 4)),
            "attn_dim_head": int(rng.integers(6, 9)),
            "verbose": False,
            **of_layers,
        }
        for prefix in ("enc_", "dec_")
    }
    torch.manual_seed(int(rng.integers(2**31)))
    mask, source = np.arange(n) < np.array([[n], [n], [1]]), rng.integers(0, 13, (3, n))
    if kind is xt.ViTransformerWrapper:
        p, channels = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        of_wrapper = of_wrapper | {"image_size": 3 * p, "patch_size": p, "channels": channels}
        mask, source = None, rng.normal(size=(3, 9, channels * p * p))
    elif kind is xt.ContinuousTransformerWrapper:
        source = rng.normal(size=(3, n, of_wrapper.get("dim_in", dim)))
    encoder = kind(attn_layers=xt.Encoder(**layers["enc_"]), **of_wrapper)
    text = {"num_tokens": 17, "max_seq_len": 16}
    decoder = xt.Decoder(cross_attend=True, **layers["dec_"])
    decoder = xt.AutoregressiveWrapper(xt.TransformerWrapper(attn_layers=decoder, **text))
    with torch.no_grad():
        for part in (encoder, decoder):
            part.eval()
            for parameter in part.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    if kind is xt.ContinuousTransformerWrapper and "dim_in" not in of_wrapper:
        of_wrapper = of_wrapper | {"dim_in": dim, "use_identity_if_same_dim": True}
    no_options = ("num_classes", "dim_out")
    layers["enc_"] |= {k: v for k, v in of_wrapper.items() if k not in no_options}
    layers["dec_"] |= text
    options = {prefix + k: v for prefix, side in layers.items() for k, v in side.items()}
    target = rng.integers(3, 17, (3, int(rng.integers(2, 8))))
    target[:, 0] = START
    return Wrappers((encoder, decoder), options, encoder, decoder), Batch(source, mask, target)


@pytest.mark.parametrize("case", XT_CASES)
def test_logits_and_tokens_of_x_transformers(case, say):
    worst = 0.0
    for seed in range(N_MODELS):
        rng = np.random.default_rng([seed, zlib.crc32(case.encode())])
        network, batch = random_wrappers(rng, *XT_CASES[case])
        as_shipped = network.convert()
        assert_same_model(network.convert_arrays(), as_shipped)
        close(*logits_of_both(network, as_shipped, batch, "float32"))
        model = network.in_float64()
        ours, theirs = logits_of_both(network, model, batch, "float64")
        worst = max(worst, relative_error(ours, theirs))
        assert check_greedy(network, model, batch, batch.target[:, : 1 + seed % 2], 4) == 0
    say(f"{case}: logits within {worst:.1e}, all 90 rows of greedy tokens equal")
    assert worst < 1e-12


def logits_of_both(network, model, batch, dtype):
    source = batch.source.astype(dtype) if batch.source.ndim == 3 else batch.source
    assert model.dtype == dtype
    return (
        rs.forward(model, source, batch.target, batch.mask),
        network.logits(source, batch.mask, batch.target),
    )


@pytest.mark.parametrize(
    ("kind", "of_wrapper", "of_layers", "said"),
    [
        ("vit", {"num_register_tokens": 2}, {"rotary_pos_emb": True}, "num_register_tokens = 2"),
        ("continuous", {"dim_in": 5, "average_pool_embed": True}, {}, "average_pool_embed"),
        ("continuous", {"project_in": torch.nn.Linear(5, 10)}, {}, "project_in"),
    ],
)
def test_wrappers_that_are_not_implemented_raise(kind, of_wrapper, of_layers, said):
    kinds = {"vit": xt.ViTransformerWrapper, "continuous": xt.ContinuousTransformerWrapper}
    sizes = {"vit": {"image_size": 6, "patch_size": 3}, "continuous": {}}[kind]
    layers = {"dim": 10, "depth": 1, "verbose": False}
    encoder = kinds[kind](attn_layers=xt.Encoder(**layers, **of_layers), **sizes, **of_wrapper)
    decoder = xt.TransformerWrapper(
        num_tokens=17, max_seq_len=9, attn_layers=xt.Decoder(cross_attend=True, **layers)
    )
    with pytest.raises(UnsupportedFeature, match=said):
        from_x_transformers((encoder, decoder), **CONVENTIONS)
