"""The generation config of a checkpoint of transformers 5.24, as `refseq2seq.settings.Settings`."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...config import ModelConfig
from ...files.reading import one_line
from ...generation.like import SETTINGS
from ...settings import Settings

# Fields that become tokens of our config.
SPECIAL_TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id")
TOKENS = {
    *SPECIAL_TOKENS, "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
    "begin_suppress_tokens",
}  # fmt: skip

# Fields that are not implemented, and the values, besides None, that have no effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "max_time": (), "stop_strings": (), "top_h": (), "remove_invalid_values": (False,),
    "token_healing": (False,), "guidance_scale": (1,), "watermarking_config": (),
    "num_beam_groups": (1,), "diversity_penalty": (0,), "penalty_alpha": (0,), "dola_layers": (),
    "constraints": (), "force_words_ids": (), "use_mtp": (False,), "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (), "assistant_ensemble_weight": (), "return_timestamps": (False,),
    "condition_on_prev_tokens": (False,),
    "cache_implementation": ("dynamic", "static", "hybrid", "offloaded", "offloaded_static"),
}  # fmt: skip

# Fields that do not change the generated tokens.
WITHOUT_EFFECT = {
    "transformers_version", "_from_model_config", "use_cache", "cache_config", "max_cache_len",
    "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores",
    "output_logits", "low_memory", "compile_config", "disable_compile",
    "continuous_batching_config", "prefill_chunk_size", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind",
    "target_lookbehind", "max_matching_ngram_size", "speculation_type",
    # Of Whisper: they concern timestamps, and a text before that of the speech.
    "alignment_heads", "median_filter_width", "max_initial_timestamp_index", "prev_sot_token_id",
    "is_multilingual",
}  # fmt: skip

KNOWN = TOKENS | SETTINGS.keys() | NEUTRAL.keys() | WITHOUT_EFFECT


def read_settings(fields: Mapping[str, Any], c: ModelConfig) -> Settings:
    """The settings in a generation config, whose tokens are in ``c``.

    A field becomes an entry of ``not_implemented`` if it is not implemented, is unknown or does not
    have its type, unless its value has no effect. Bad words of one token are left out if ``c``
    suppresses the token or if it ends a target.
    """
    settings, others = Settings(), {}
    for name, value in fields.items():
        is_token = name in TOKENS and not (name == "forced_eos_token_id" and _several(value))
        if value is None or is_token or name in WITHOUT_EFFECT:
            continue
        if name in SETTINGS:
            try:
                settings = settings.with_fields({SETTINGS[name]: value})
                continue
            except (TypeError, ValueError):
                pass
        elif value in NEUTRAL.get(name, ()):
            continue
        others[name] = value
    done = [(token,) for token in (*c.suppressed_ids, *c.eos_ids)]
    words = tuple(word for word in settings.bad_words if word not in done)
    told = tuple(
        (name, one_line(json.dumps(others[name], default=str), 200)) for name in sorted(others)
    )
    return replace(settings, bad_words=words, not_implemented=told)


def _several(tokens: Any) -> bool:
    return isinstance(tokens, list | tuple) and len(tokens) > 1
