"""The mistakes that the cases reveal, by the flag that names each."""

FLAGS: dict[str, dict[str, str]] = {
    "PadLeak": {
        "bugType": "mask",
        "description": "The source mask is left out: padding takes part in attention.",
        "effect": "A row's numbers depend on how long its neighbours are.",
    },
    "CausalMask": {
        "bugType": "mask",
        "description": "The causal mask is off by one: a target token sees the one after it.",
        "effect": "Teacher forcing looks better than generation ever is.",
    },
    "AllMaskedRow": {
        "bugType": "mask",
        "description": "A source without a real token gives NaN, or the mean of its padding. "
        "Attention to nothing is zero.",
        "effect": "One empty row spoils a batch, or is answered from padding.",
    },
    "PadIdInferred": {
        "bugType": "mask",
        "description": "The mask is guessed from pad_id, or from the length, and the one given "
        "is not used: real tokens equal pad_id, masked ones do not, and both are mixed.",
        "effect": "Real tokens disappear and others appear.",
    },
    "PositionAfterPadding": {
        "bugType": "positions",
        "description": "Positions are counted from the left edge, not from the first real token.",
        "effect": "A row padded on the left is another row.",
    },
    "ScatteredMask": {
        "bugType": "positions",
        "description": "Masked places between real tokens are counted as positions. The source "
        "mask has holes, and positions count real tokens only.",
        "effect": "Right with padding at one end, wrong where the mask has holes.",
    },
    "CachePosition": {
        "bugType": "positions",
        "description": "With a cache the new token gets the position before its own.",
        "effect": "The first step is right and all others are not.",
    },
    "LastPosition": {
        "bugType": "positions",
        "description": "The position table is left before its last row is used.",
        "effect": "The longest sources and targets fail, or are cut short.",
    },
    "RaggedPrefix": {
        "bugType": "generation",
        "description": "Rows whose prefix is longer take tokens of their own instead of it.",
        "effect": "A batch of prefixes of several lengths ignores the longer ones.",
    },
    "EosInPrefix": {
        "bugType": "generation",
        "description": "An end token inside the prefix ends the row.",
        "effect": "Models whose prefix holds it generate nothing.",
    },
    "FinishedRow": {
        "bugType": "generation",
        "description": "A row goes on after its end token while its neighbours do.",
        "effect": "Text after the end, and log-probabilities that count it.",
    },
    "ArgmaxTie": {
        "bugType": "choice",
        "description": "Of equal scores the greedy choice takes another than the lowest id.",
        "effect": "Two correct implementations disagree, and so do two runs.",
    },
    "TopKTie": {
        "bugType": "choice",
        "description": "Top-k keeps more than k tokens, or another one, where the k-th score "
        "comes twice. Exactly k stay, of equal ones the lowest ids.",
        "effect": "Tokens that should be out are drawn.",
    },
    "FilterOrder": {
        "bugType": "choice",
        "description": "Temperature, top-k and top-p are applied in another order.",
        "effect": "Top-p keeps another set of tokens.",
    },
    "TopPCrossing": {
        "bugType": "choice",
        "description": "Top-p drops the token with which the sum crosses p; it stays.",
        "effect": "Too few tokens are left.",
    },
    "UniformEdge": {
        "bugType": "choice",
        "description": "At the uniform number 0, or just below 1, the draw is a token that "
        "the filters took out, or is none at all.",
        "effect": "Once in a great many draws an impossible token.",
    },
    "BeamReorder": {
        "bugType": "beams",
        "description": "Beams change places and their cached keys and values do not.",
        "effect": "Hypotheses continue the history of another one.",
    },
    "LengthPenalty": {
        "bugType": "beams",
        "description": "Scores are not divided by length ** length_penalty, the end token counted.",
        "effect": "Hypotheses of different lengths come in another order.",
    },
    "SoftmaxOverflow": {
        "bugType": "numbers",
        "description": "The greatest score is not subtracted before the exponential.",
        "effect": "NaN where the scores are great.",
    },
    "NormEps": {
        "bugType": "numbers",
        "description": "The norm has another eps, or adds it at another place.",
        "effect": "Small at most inputs; plain to see where what is normalised is small.",
    },
    "NormPlace": {
        "bugType": "convention",
        "description": "Norms stand before the sublayers and not after the sum.",
        "effect": "Another model with the same weights.",
    },
    "EmbeddingScale": {
        "bugType": "convention",
        "description": "Embeddings are not multiplied by sqrt(d_model).",
        "effect": "Positions outweigh the tokens.",
    },
    "SinusoidLayout": {
        "bugType": "convention",
        "description": "Sines fill the first half and cosines the second; they alternate here.",
        "effect": "Positions that the weights were not trained with.",
    },
    "GeluForm": {
        "bugType": "convention",
        "description": "GELU is computed by the other formula, with tanh or without.",
        "effect": "Up to 5e-4 in each activation.",
    },
    "PositionScale": {
        "bugType": "convention",
        "description": "Learned positions are not multiplied by 1 / sqrt(d_model).",
        "effect": "Positions outweigh the tokens.",
    },
    "RelativeBuckets": {
        "bugType": "convention",
        "description": "The decoder's relative positions fall into the encoder's buckets, "
        "which go both ways.",
        "effect": "Distant tokens get a bias of others.",
    },
    "AttentionScale": {
        "bugType": "convention",
        "description": "Scores are divided by sqrt(d_k); T5 does not.",
        "effect": "Attention is too even.",
    },
    "LogitsScale": {
        "bugType": "convention",
        "description": "With a tied head the decoder's output is not scaled by 1 / sqrt(d_model).",
        "effect": "The same best token, and log-probabilities that are too sure of it.",
    },
    "RotaryPairing": {
        "bugType": "convention",
        "description": "Rotations pair neighbours where they should pair halves, or the reverse.",
        "effect": "Right at position 0, wrong after it.",
    },
    "KeyValueHeads": {
        "bugType": "convention",
        "description": "Query heads meet the keys of another group: grouped and tiled orders "
        "are swapped.",
        "effect": "Half the heads look up the wrong keys.",
    },
    "BiasedDeviation": {
        "bugType": "convention",
        "description": "The standard deviation divides by d where this norm divides by d - 1.",
        "effect": "Everything after the norm is off by a constant factor.",
    },
}

OF_FAMILY = {
    "vaswani": ("NormPlace", "EmbeddingScale", "SinusoidLayout"),
    "x_transformers": ("GeluForm", "PositionScale"),
    "t5": ("GeluForm", "RelativeBuckets", "AttentionScale", "LogitsScale"),
    "everything": ("RotaryPairing", "KeyValueHeads", "BiasedDeviation"),
}
"""Flags of the conventions of each family that its first case already reveals."""
