"""Contrastive decoding, live against x-transformers, which gives amateurs the expert's encoding."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")

from xt_networks import START, random_batch, random_network

import refseq2seq as rs

N_NEW = 7


@pytest.mark.parametrize("n_amateurs", [1, 2])
def test_the_same_greedy_tokens(n_amateurs):
    """x-transformers has -finfo.max where we have -inf: a chosen token never has either."""
    for seed in range(25):
        rng = np.random.default_rng([seed, n_amateurs])
        sizes = {"dim": 14, "enc_num_tokens": 13, "dec_num_tokens": 11}
        expert, *amateurs = (random_network(rng, sizes) for _ in range(1 + n_amateurs))
        batch = random_batch(rng, expert.options, "right")
        ours = [network.in_float64() for network in (expert, *amateurs)]
        settings = [{"alpha": 0.1, "beta": 0.5}, {"alpha": 0.3, "beta": 1.0}][:n_amateurs]
        prompts = np.full((len(batch.source), 1), START)
        theirs = expert.generate(
            batch.source,
            batch.mask,
            prompts,
            N_NEW,
            temperature=0.0,
            amateur_model=tuple(network.decoder for network in amateurs),
            contrastive_decode_kwargs=tuple(settings),
        )
        how = {"source_mask": batch.mask, "max_new_tokens": N_NEW}
        how["amateurs"] = [
            rs.amateur(model, **setting, reads_source=False)
            for model, setting in zip(ours[1:], settings, strict=True)
        ]
        steps = list(rs.decode_steps(ours[0], batch.source, **how))
        assert min(step.margin[step.emitted].min(initial=np.inf) for step in steps) > 1e-9
        out = rs.Generation.from_steps(steps, pad_id=0)
        for row, n in enumerate(out.lengths):
            assert out.tokens[row, :n].tolist() == theirs[row, :n].tolist()
