"""Small SentencePiece models, trained on a few sentences."""

import io
from functools import cache

SENTENCES = (
    "the cat sat on the mat",
    "a dog ate the cat's hat",
    "that is what the man said at last",
    "so she went to the sea and saw the sun",
)


@cache
def pieces(sentences: tuple[str, ...], vocab_size: int) -> bytes:
    """A SentencePiece model as T5 has them: pad 0, end 1, unknown 2."""
    import sentencepiece

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 5), model_writer=file, vocab_size=vocab_size,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return file.getvalue()
