"""Converter for Whisper with the names of OpenAI's package ``whisper``."""

from collections.abc import Mapping
from typing import Any

from ..checks import UnsupportedFeature, check_int
from ..model import Model
from .given import numpy_arrays, plain_module, wrong_module
from .huggingface import whisper
from .huggingface.common import Fields, check_layers, in_one_dtype
from .table import convert_params, module_rows, numbered, same, special_tokens, transposed

# Their sizes -> those of a config of transformers.
DIMS = {
    "n_mels": "num_mel_bins", "n_audio_ctx": "max_source_positions", "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads", "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size", "n_text_ctx": "max_target_positions", "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads", "n_text_layer": "decoder_layers",
}  # fmt: skip
# Our names -> theirs. {end} differs between the encoder and the decoder.
STACK = {
    "layers.*.self_norms.before": "blocks.*.attn_ln",
    "layers.*.self_attention.q": "blocks.*.attn.query",
    "layers.*.self_attention.k": "blocks.*.attn.key",
    "layers.*.self_attention.v": "blocks.*.attn.value",
    "layers.*.self_attention.o": "blocks.*.attn.out",
    "layers.*.cross_norms.before": "blocks.*.cross_attn_ln",
    "layers.*.cross_attention.q": "blocks.*.cross_attn.query",
    "layers.*.cross_attention.k": "blocks.*.cross_attn.key",
    "layers.*.cross_attention.v": "blocks.*.cross_attn.value",
    "layers.*.cross_attention.o": "blocks.*.cross_attn.out",
    "layers.*.feed_forward_norms.before": "blocks.*.mlp_ln",
    "layers.*.feed_forward.in": "blocks.*.mlp.0",
    "layers.*.feed_forward.out": "blocks.*.mlp.2",
    "final_norm": "{end}",
}
EMBEDDING = "decoder.token_embedding.weight"
MULTILINGUAL = 51865  # tokens, or more


def from_whisper(model: Any) -> Model:
    """Convert a Whisper with the names of OpenAI's package, a checkpoint or a live module.

    Parameters
    ----------
    model : mapping or module
        A ``whisper.model.Whisper``; or a mapping of ``"dims"`` to the sizes, such as ``n_mels``,
        and of ``"model_state_dict"`` to arrays of NumPy or PyTorch. This is the content of
        OpenAI's ``.pt`` files, which ``torch.load(path, weights_only=True)`` reads. refseq2seq
        never reads pickles.

    Returns
    -------
    Model
        In float64 if any array is float64, otherwise in float32, which represents float16 exactly.
        It has no vocabularies, which are other files of the package.

    Raises
    ------
    TypeError, ValueError
        If the argument is neither, or if a size or an array is missing, not used, or does not fit.
        The message names it.
    UnsupportedFeature
        If the encoder and the decoder differ in width.

    Notes
    -----
    The start and end tokens are those of the package, where a model of 51865 tokens or more is
    multilingual. The model has no settings. ``whisper.decode`` suppresses tokens by default: pass
    ``processors=[rs.suppress(...), rs.begin_suppress(...)]``. It also begins with a prefix: see
    `refseq2seq.speech.prompt`. Frames are (batch, n_frames, n_mels); the package swaps the last
    two axes.
    """
    dims, arrays = _parts(model)
    fields = _fields(dims)
    end = 50256 + (fields["vocab_size"] >= MULTILINGUAL)
    tokens = special_tokens(end + 1, (end,), pad_id=end)
    arrays = in_one_dtype(numpy_arrays(arrays))
    config = whisper.configured(fields, tokens, {"tied_embeddings": False, "tied_logits": True})
    check_layers(config, arrays)
    table = {
        **module_rows("encoder.", "encoder.", STACK, end="ln_post"),
        **module_rows("decoder.", "decoder.", STACK, end="ln"),
        **whisper.convolutions("encoder."),
        "encoder.positions": ("encoder.positional_embedding", same),
        "decoder.positions": ("decoder.positional_embedding", same),
        "decoder.embedding": (EMBEDDING, same),
        "unembedding": (EMBEDDING, transposed),
    }
    params = convert_params(config, numbered(config, table), arrays)
    return Model(config=config, params=params)


def _parts(model: Any) -> tuple[Any, Mapping[str, Any]]:
    """The sizes and the arrays."""
    if isinstance(model, Mapping):
        if missing := sorted({"dims", "model_state_dict"} - model.keys()):
            raise ValueError(
                f"model must have the keys 'dims' and 'model_state_dict', got no {missing[0]!r}"
            )
        return model["dims"], model["model_state_dict"]
    module = plain_module(model)
    if not hasattr(module, "dims") or not hasattr(module, "state_dict"):
        raise wrong_module("model", "a Whisper of OpenAI's package", model)
    return vars(module.dims), module.state_dict()


def _fields(dims: Any) -> Fields:
    """The fields of a config of transformers."""
    if not isinstance(dims, Mapping) or dims.keys() != DIMS.keys():
        raise ValueError(
            f"dims must be a mapping of the sizes {', '.join(DIMS)}, got {dims!r:.300}"
        )
    if dims["n_audio_state"] != dims["n_text_state"]:
        raise UnsupportedFeature(
            f"n_audio_state = {dims['n_audio_state']} and n_text_state = {dims['n_text_state']}: "
            "they must be equal"
        )
    sizes = {theirs: check_int(f"dims' {name}", dims[name], 1) for name, theirs in DIMS.items()}
    d_ff = 4 * Fields(sizes)["d_model"]
    others = {"encoder_ffn_dim": d_ff, "decoder_ffn_dim": d_ff, "activation_function": "gelu"}
    return Fields(sizes | others)
