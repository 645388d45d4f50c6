"""Transcribe a recording of any length with Whisper: python transcribe.py DIR sound.wav [de]"""

import sys
import zlib
from dataclasses import replace

import refseq2seq as rs
from refseq2seq.speech import log_mel, prompt, read_wav, segments, special_ids

RATE = 16_000
WINDOW = 30 * RATE
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
BEST_OF = 5


def transcribe(model, waveform, language=None, temperatures=TEMPERATURES):
    """The segments of a recording, one window after the other."""
    first, found = 0, []
    while first < len(waveform):
        window = waveform[first : first + WINDOW]
        tokens = decode(model, window, language, temperatures, seed=first)
        parts = segments(tokens, model.target_vocabulary, duration=len(window) / RATE)
        n = len(window)
        if parts[-1].end is None:  # the window cuts this one off: the next begins with it
            parts.pop()
            n = round(parts[-1].end * RATE)
        start = first / RATE
        found += [replace(part, start=start + part.start, end=start + part.end) for part in parts]
        first += n
    return found


def decode(model, window, language, temperatures, seed):
    """The tokens of a window, at the lowest temperature where they are likely and do not repeat."""
    tokenizer = model.target_vocabulary
    ids = special_ids(tokenizer)
    rules = rs.timestamp_rules(ids["<|notimestamps|>"], ids["<|endoftext|>"])
    prefix = prompt(tokenizer, language, timestamps=True)
    memory = rs.encode(model, [log_mel(window, model.config.encoder.input.n_features)])
    for temperature in temperatures:
        if temperature == 0:
            how = {"choose": rs.greedy(rules)}
        else:
            choose = rs.sample(rules, rs.temperature(temperature))
            how = {"choose": choose, "num_return_sequences": BEST_OF, "seed": seed}
        out = rs.generate(model, memory, prefix=[prefix], max_new_tokens=224, **how)
        means = out.log_probs.sum(axis=1) / out.lengths
        best = means.argmax()
        tokens = out.tokens[best, : out.lengths[best]]
        text = tokenizer.decode(tokens).encode()
        if means[best] >= -1.0 and len(text) / len(zlib.compress(text)) <= 2.4:
            break
    return tokens


if __name__ == "__main__":
    directory, path, *language = sys.argv[1:]
    model = replace(rs.load(directory), settings=None)  # how to decode is written above
    for part in transcribe(model, read_wav(path), *language):
        print(f"{part.start:.2f} {part.end:.2f} {part.text.strip()}")
