"""From x-transformers 2.31: a live module, or its arrays and its constructor's options.

    model = from_x_transformers(module, decoder_start_id=1, eos_ids=(2,))

A live module is first reduced to arrays and options (`module`, the only part that
needs torch). The options become a `ModelConfig` (`options`, `config`), and one table
makes its parameters of the arrays (`arrays`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ...config import ModelConfig
from ...model import Model
from ...text import Vocabulary
from ..given import missing_peers, numpy_arrays
from ..table import convert_params, token_ids, transposed
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
    """The model that an encoder-decoder of x-transformers 2.31 is, with its float dtype.

    Parameters
    ----------
    module : XTransformer, pair of TransformerWrapper, or mapping of names to arrays
        The pair is (encoder, decoder); its decoder may be in an AutoregressiveWrapper.
        The mapping has the names of ``XTransformer.state_dict()``, and arrays of NumPy or
        PyTorch. Modules, and arrays by their names, may come from ``torch.compile``.
    options : mapping, with a mapping of arrays only
        The keyword arguments given to XTransformer. What TransformerWrapper takes and it
        does not, such as ``tie_embedding``, has its prefixes ``enc_`` and ``dec_`` as
        well, and so has ``dim`` where encoder and decoder differ.
    decoder_start_id : int
        Begins every target; x-transformers leaves it to the caller of ``generate``.
    eos_ids : sequence of int
    pad_id : int, optional
        By default the module's ``pad_value``, which is 0 unless it was set.
    source_vocabulary, target_vocabulary : Vocabulary, optional

    Returns
    -------
    Model
        bfloat16 parameters are widened to float32.

    Raises
    ------
    UnsupportedFeature
        Naming an option that is not implemented, or adapters that are not merged.
    ValueError
        Naming an array that is missing, misshapen, without numbers or left over.
    TypeError
        If something else is given than modules or arrays.
    """
    if isinstance(module, Mapping):
        if not isinstance(options, Mapping):
            raise TypeError(
                "arrays need options: a mapping with the keyword arguments given to "
                f"XTransformer, got {type(options).__name__}"
            )
        arrays = numpy_arrays(module)
    elif options is not None:
        raise TypeError(
            f"options are for a mapping of arrays, got them with {type(module).__name__}; a "
            "module brings its own"
        )
    else:
        try:
            from .module import read_module
        except ImportError as error:
            raise missing_peers(module, "torch and x-transformers", error) from error
        arrays, options = read_module(module)
    shared = SHARED | {name: options[name] for name in SHARED.keys() & options.keys()}
    encoder, decoder = Side.of("enc_", options), Side.of("dec_", options)
    config = ModelConfig(
        encoder=stack_config(encoder, arrays),
        decoder=stack_config(decoder, arrays),
        tied_embeddings=shared["tie_token_emb"],
        tied_logits=decoder["tie_embedding"],
        logits_scale=logits_scale(decoder),
        logits_bias=False,
        decoder_start_id=decoder_start_id,
        eos_ids=token_ids("eos_ids", eos_ids),
        pad_id=shared["pad_value"] if pad_id is None else pad_id,
        forced_bos_id=None,
        forced_eos_id=None,
        suppressed_ids=(),
        begin_suppressed_ids=(),
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
