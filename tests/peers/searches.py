"""What comparisons of beam search share: hypotheses beside ours, and CTranslate2's engine."""

import numpy as np
import pytest

# transformers adds up log-probabilities in float32: their sums are within a few of its
# roundings of ours. Where two scores that were compared are nearer, either order is right.
TOLERANCE = 2e-5


def compare(ours, tokens, scores):
    """Rows that were equal, and rows that differ at a near-tie; any other row fails."""
    equal = near = 0
    scores = np.where(scores > -1e8, scores, -np.inf)  # -1e9 is transformers' place of nothing
    for row in range(len(tokens)):
        same = all(
            tokens[row, k, :n].tolist() == ours.tokens[row, k, :n].tolist()
            for k, n in enumerate(ours.lengths[row])
        )
        if same:
            np.testing.assert_allclose(
                ours.scores[row], scores[row], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=False
            )
            equal += 1
        else:
            assert ours.margin[row] < TOLERANCE, (ours.tokens[row], tokens[row])
            near += 1
    return equal, near


CT2_FAMILIES = ["BART", "mBART", "Pegasus", "M2M100", "T5 1.0"]
END = 2


def translator(model, directory):
    """A Translator of CTranslate2 with the same float32 weights; token i is called "t{i}"."""
    ctranslate2 = pytest.importorskip("ctranslate2", reason="pip install '.[peers]'")
    loaders = ctranslate2.converters.transformers._MODEL_LOADERS
    c = model.config
    c.normalize_before = c.model_type in ("mbart", "pegasus")  # not in a fresh config any more
    c.normalize_embedding = c.model_type in ("bart", "mbart")
    loader = loaders[type(c).__name__]
    spec = loader.get_model_spec(model)
    loader.set_vocabulary(spec, [f"t{i}" for i in range(c.vocab_size)])
    spec.config.bos_token = spec.config.unk_token = "t0"
    spec.config.eos_token = f"t{END}"
    spec.config.decoder_start_token = f"t{c.decoder_start_token_id}"
    spec.config.add_source_eos = spec.config.add_source_bos = False
    spec.validate()
    spec.optimize()
    directory.mkdir()
    spec.save(str(directory))
    return ctranslate2.Translator(str(directory), intra_threads=1)
