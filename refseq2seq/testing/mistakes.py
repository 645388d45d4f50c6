"""The catalogue of mistakes: what implementations of encoder-decoders get wrong.

Each has a flag. A case of the test vectors lists the flags of the mistakes that it reveals. Each
cause that `diagnose` finds has a flag, and so does each bug that the tests plant.
"""

import re

TABLE = """
PadLeak (mask): The source mask is left out: padding takes part in attention.
    -> A row's numbers depend on how long its neighbours are.
CausalMask (mask): The causal mask is off by one: a target token sees the one after it.
    -> Teacher forcing looks better than generation ever is.
AllMaskedRow (mask): A source without a real token gives NaN, or the mean of its padding. Attention
    to nothing is zero.
    -> One empty row spoils a batch, or is answered from padding.
PadIdInferred (mask): The mask is guessed from pad_id, or from the length, and the one given is not
    used: real tokens equal pad_id, masked ones do not, and both are mixed.
    -> Real tokens disappear and others appear.
MaskInverted (mask): The mask has the opposite meaning: what is masked takes part, the rest does
    not.
    -> Attention reads padding, or the future, only.
OtherMask (mask): Another mask: causal in an encoder, one token longer or shorter, applied to
    weights.
    -> Some keys are lost, or some that are masked take part.
FrameMask (mask): The mask of windows is not that of their frames: one window longer or shorter.
    -> The last sound is lost, or silence after it is heard.
WindowEdge (mask): The window of a layer's attention is off by one, or is that of another layer.
    -> Right for short texts, wrong for longer ones.
CapOrder (attention): Scores are capped after the mask: the cap makes -inf a finite score.
    -> Padding and later tokens take part in attention.
ScoreCap (attention): Scores are not capped, or by another number.
    -> The largest scores count too much or too little.
SoftmaxForm (attention): The softmax runs over another axis, or the weights are another function.
    -> The weights of a query do not sum to 1.
HeadOrder (attention): Heads are split or joined in another order.
    -> Each head mixes the elements of several.
HeadCount (attention): The same matrices are split into another number of heads.
    -> Right shapes, other attention.
AxesSwapped (attention): Batch and positions are exchanged.
    -> Rows attend to each other.
PositionAfterPadding (positions): Positions are counted from the left edge, not from the first real
    token.
    -> A row padded on the left is another row.
ScatteredMask (positions): Masked places between real tokens are counted as positions. The source
    mask has holes, and positions count real tokens only.
    -> Right with padding at one end, wrong where the mask has holes.
CachePosition (positions): With a cache the new token gets the position before its own.
    -> The first step is right and all others are not.
LastPosition (positions): The position table is left before its last row is used.
    -> The longest sources and targets fail, or are cut short.
OtherPositions (positions): Positions are counted otherwise: from another number, or anew in a step.
    -> Right at some positions, wrong at the others.
CacheContents (cache): A cached key or value is that of another row or position, or is missing.
    -> The first step is right and later ones are not.
ClassTokens (inputs): Class tokens stand after the embeddings of frames, or are left out.
    -> All embeddings get the positions of others.
OtherTokens (inputs): Other token ids are read.
    -> The model reads another text.
OtherInput (inputs): The quantity is computed from another quantity, or is another quantity.
    -> A residual, a norm or a memory is taken at the wrong place.
OtherFrames (inputs): The features of frames are in another order or on another scale, or the axes
    of frames and features are exchanged.
    -> The encoder hears something else.
OtherRow (inputs): The rows of the batch are exchanged.
    -> A row gets the numbers of its neighbour.
ShiftedInput (inputs): Positions are exchanged: shifted or reversed.
    -> A token gets the numbers of another one.
NormMissing (convention): A norm is left out.
    -> Everything after it has another scale.
NormParameters (weights): The gain or bias of a norm is left out, or is that of another norm.
    -> Everything after the norm has another scale.
GainMinusOne (weights): The gain is stored as gain - 1, and 1 is not added; or the reverse.
    -> The norm's output is far too small, or too large.
BiasMissing (weights): A bias is left out.
    -> A constant is missing from each row.
BiasAdded (weights): A bias is added that the model does not have.
    -> A constant is added to each row.
SwappedWeights (weights): Two arrays are exchanged.
    -> Right shapes, other numbers.
OtherWeights (weights): An array is that of another layer, or is transposed, or is permuted.
    -> Right shapes, other numbers.
FrameKernel (weights): The frames of a window are in another order, or a kernel's axes exchanged.
    -> Right shapes, other numbers.
FramePadding (convention): The zeros around the frames all stand after them, are left out, or are
    other vectors.
    -> Every window is a frame too late.
FrameNorm (convention): The norm of a layer of frames stands before the activation and not after it.
    -> Embeddings of another scale.
LogitsCap (convention): Logits are not capped, or by another number.
    -> The same best token, and log-probabilities that are too sure of it.
NormPlace (convention): Norms stand before the sublayers and not after the sum.
    -> Another model with the same weights.
EmbeddingScale (convention): Embeddings are not multiplied by sqrt(d_model).
    -> Positions outweigh the tokens.
SinusoidLayout (convention): Sines fill the first half and cosines the second; they alternate here.
    -> Positions that the weights were not trained with.
GeluForm (convention): GELU is computed by the other formula, with tanh or without.
    -> Up to 5e-4 in each activation.
PositionScale (convention): Learned positions are not multiplied by 1 / sqrt(d_model).
    -> Positions outweigh the tokens.
RelativeBuckets (convention): The decoder's relative positions fall into the encoder's buckets,
    which go both ways.
    -> Distant tokens get a bias of others.
AttentionScale (convention): Scores are divided by sqrt(d_k); T5 does not.
    -> Attention is too even.
LogitsScale (convention): With a tied head the decoder's output is not scaled by 1 / sqrt(d_model).
    -> The same best token, and log-probabilities that are too sure of it.
RotaryPairing (convention): Rotations pair neighbours where they should pair halves, or the reverse.
    -> Right at position 0, wrong after it.
KeyValueHeads (convention): Query heads meet the keys of another group: grouped and tiled orders are
    swapped.
    -> Half the heads look up the wrong keys.
BiasedDeviation (convention): The standard deviation divides by d where this norm divides by d - 1.
    -> Everything after the norm is off by a constant factor.
RotaryBase (convention): The rotation has another base.
    -> Right at position 0, more and more wrong after it.
AlibiSlopes (convention): ALiBi has other slopes.
    -> Attention decays with distance at another rate.
RelativeScale (convention): The bias of relative positions has another scale, or is left out.
    -> Distance counts too little or too much.
Activation (convention): The activation function is another one.
    -> Wrong from the first feed-forward layer on.
NormKind (convention): The norm is another one.
    -> Means are subtracted where they should stay, or the reverse.
SoftmaxOverflow (numbers): The greatest score is not subtracted before the exponential.
    -> NaN where the scores are great.
NormEps (numbers): The norm has another eps, or adds it at another place.
    -> Small at most inputs; plain to see where what is normalised is small.
Factor (numbers): A constant factor.
    -> Everything after it has another scale.
LowPrecision (numbers): Numbers are rounded to a coarser format.
    -> Errors far beyond those of the declared format.
RaggedPrefix (generation): Rows whose prefix is longer take tokens of their own instead of it.
    -> A batch of prefixes of several lengths ignores the longer ones.
EosInPrefix (generation): An end token inside the prefix ends the row.
    -> Models whose prefix holds it generate nothing.
FinishedRow (generation): A row goes on after its end token while its neighbours do.
    -> Text after the end, and log-probabilities that count it.
ArgmaxTie (choice): Of equal scores the greedy choice takes another than the lowest id.
    -> Two correct implementations disagree, and so do two runs.
TopKTie (choice): Top-k keeps more than k tokens, or another one, where the k-th score comes twice.
    Exactly k stay, of equal ones the lowest ids.
    -> Tokens that should be out are drawn.
FilterOrder (choice): Temperature, top-k and top-p are applied in another order.
    -> Top-p keeps another set of tokens.
TopPCrossing (choice): Top-p drops the token with which the sum crosses p; it stays.
    -> Too few tokens are left.
UniformEdge (choice): At the uniform number 0, or just below 1, the draw is a token that the filters
    took out, or is none at all.
    -> Once in a great many draws an impossible token.
BeamReorder (beams): Beams change places and their cached keys and values do not.
    -> Hypotheses continue the history of another one.
LengthPenalty (beams): Scores are not divided by length ** length_penalty, the end token counted.
    -> Hypotheses of different lengths come in another order.
"""
"""``flag (kind of mistake): description``, then ``->`` and the effect."""

MISTAKES = {
    flag: {"bugType": kind, "description": " ".join(description.split()), "effect": effect}
    for flag, kind, description, effect in re.findall(
        r"^(\w+) \((\w+)\): (.+?(?:\n    .+?)*)\n    -> (.+)", TABLE, re.MULTILINE
    )
}
"""The entry of each flag: its kind (``bugType``), ``description`` and ``effect``."""
