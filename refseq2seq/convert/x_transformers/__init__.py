"""Converter for x-transformers 2.31: a live module, or its arrays and its constructor's options.

    model = from_x_transformers(module, decoder_start_id=1, eos_ids=(2,))

`module`, the only part that needs torch, reads the arrays and options of a live module.
`options` and `config` convert the options to a `ModelConfig`, and `arrays` has the table that
converts the arrays to parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...config import ModelConfig
from ...model import Model
from ...text import Vocabulary
from ..given import arrays_and_options
from ..table import convert_params, special_tokens, transposed
from .arrays import read_otherwise, stack_table
from .config import logits_scale, stack_config
from .options import SHARED, Side

__all__ = ["from_x_transformers"]


def from_x_transformers(
    module: Any,
    options: Mapping[str, Any] | None = None,
    *,
    decoder_start_id: int,
    eos_ids: Sequence[int],
    pad_id: int | None = None,
    source_vocabulary: Vocabulary | None = None,
    target_vocabulary: Vocabulary | None = None,
) -> Model:
    """Convert an encoder-decoder of x-transformers 2.31; the model has its floating-point dtype.

    Parameters
    ----------
    module : XTransformer, pair of wrappers, or mapping of names to arrays
        The pair is (encoder, decoder). The encoder is a TransformerWrapper, or reads frames: a
        ContinuousTransformerWrapper, or a ViTransformerWrapper, whose frames are
        `refseq2seq.patches`. The decoder is a TransformerWrapper with ``cross_attend=True``, which
        may be in an AutoregressiveWrapper.
        The mapping has the names of ``XTransformer.state_dict()``, and arrays of NumPy or
        PyTorch. Modules, and mappings of arrays, may come from ``torch.compile``.
    options : mapping, only if ``module`` is a mapping
        The keyword arguments given to XTransformer. Options of a wrapper that XTransformer
        lacks, such as ``tie_embedding``, ``dim_in`` and ``image_size``, also have the prefix
        ``enc_`` or ``dec_``, and so has ``dim`` if encoder and decoder differ.
    decoder_start_id : int
        Begins every target; in x-transformers the caller of ``generate`` supplies it.
    eos_ids : sequence of int
        The tokens that end a target.
    pad_id : int, optional
        By default the module's ``pad_value``, which is 0 unless it was set.
    source_vocabulary, target_vocabulary : Vocabulary, optional

    Returns
    -------
    Model
        bfloat16 parameters become float32.

    Raises
    ------
    UnsupportedFeature
        If an option is not implemented, which the message names, or adapters are not merged.
    ValueError
        If an array is missing, left over, without values or of the wrong shape. The message
        names it.
    TypeError
        If ``module`` is neither modules nor a mapping of arrays.
    """
    arrays, options = arrays_and_options(
        module,
        options,
        "keyword arguments given to XTransformer",
        "torch and x-transformers",
        _reader,
    )
    shared = SHARED | {name: options[name] for name in SHARED.keys() & options.keys()}
    encoder, decoder = Side.of("enc_", options), Side.of("dec_", options)
    config = ModelConfig(
        encoder=stack_config(encoder, arrays),
        decoder=stack_config(decoder, arrays),
        tied_embeddings=shared["tie_token_emb"],
        tied_logits=decoder["tie_embedding"],
        logits_scale=logits_scale(decoder),
        logits_bias=False,
        logits_softcap=None,
        **special_tokens(
            decoder_start_id, eos_ids, shared["pad_value"] if pad_id is None else pad_id
        ),
    )
    table = {
        **stack_table(encoder, arrays),
        **stack_table(decoder, arrays),
        "unembedding": ("decoder.net.to_logits.weight", transposed),
    }
    return Model(
        config=config,
        params=convert_params(config, table, arrays, read_otherwise(config, arrays)),
        source_vocabulary=source_vocabulary,
        target_vocabulary=target_vocabulary,
    )


def _reader() -> Callable[[Any], tuple[dict[str, np.ndarray], dict[str, Any]]]:
    from .module import read_module  # here, because it imports torch

    return read_module
