"""The parts of a program that are not derived from the forward pass: loop, arrays, command line."""

import json
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..model import Model
from ..params import count_parameters
from ..text import Vocabulary
from . import layout

HEAD = '''\
"""A model of {n_parameters:,} parameters, {dtype}, as one program, written out by refseq2seq.

    python model.py model.npz {usage}

needs {library} and the arrays of the checkpoint. A variable is the quantity of refseq2seq that has
its name, or the name after = in its comment.
{sizes}
"""

{imports}

import {xp} as np
'''

ENCODE = '''

def encode(model, source, mask):
    """The mask (True = real token), and each decoder layer's keys and values of the source."""
    # source and mask (batch, n); keys and values: a list of (batch, n_heads, n, d)
    encoder, decoder, keys, values = model.encoder, model.decoder, [], []
{body}
    return mask, keys, values
'''

STEP = '''

def step(model, ids, t, memory, cache):
    """Logits of the next token, (batch, 1, vocab_size); ids (batch, 1): the tokens at t, from 0."""
    # own keys and values of each layer are written to the cache at t, and read from 0 to t
    decoder, (mask, keys, values), (own_keys, own_values) = model.decoder, memory, cache
{body}
'''

GREEDY = '''

def greedy(model, source, mask, n):
    """At most n tokens of the largest logits after the start token {start_id}: (batch, up to n)."""
    memory, new = encode(model, source, mask), []
{start}
    while len(new) < n and going.any():
        logits = step(model, ids, len(new), memory, cache)
{choice}
        new.append(ids)
    return np.concat(new, axis=1)
'''

READ = '''

def tree(arrays):
    """The arrays called a.0.b and so on, as a tree: a[0].b."""
    if "" in arrays:
        return arrays[""]
    groups = {{}}
    for name, x in arrays.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {{}})[rest] = x
    members = {{name: tree(group) for name, group in groups.items()}}
    return list(members.values()) if "0" in members else SimpleNamespace(**members)


def read(path):
    """The arrays of a checkpoint; its other entry is the configuration, which is written here."""
    arrays = np.load(path)
    names = [name for name in arrays.files if name != "checkpoint.json"]
{result}
'''

TREE = 'tree({{name: arrays[name].astype("{dtype}") for name in names}})'

TIED = """\
    model = {tree}
    model.decoder.embedding = model.decoder.embedding.copy(order="F")  # read by columns: faster
    return model"""

MAIN_IDS = """

if __name__ == "__main__":
    source = np.asarray([[int(token) for token in sys.argv[2:]]])
    known = (0 <= source) & (source < {vocab_size})
    if not 1 <= source.shape[1]{longest_source} or not known.all():
        sys.exit(__doc__)
    print(*greedy(read(sys.argv[1]), source, known, {n})[0].tolist())
"""

MAIN_TEXT = '''

def spelled(text, vocabulary):
    """The token ids of a text, (1, n)."""
    plain = text.translate({{ord(old): new for old, new in vocabulary["replacements"]}})
    symbols, known = {symbols}, vocabulary["symbols"]
    if unknown := {{*symbols}} - ({{*known}} - {{*vocabulary["special"]}}):
        sys.exit(f"{{text!r}} has unknown symbols: {{', '.join(sorted(unknown))}}")
    if not 1 <= len(symbols){longest_source}:
        sys.exit(f"{{text!r}} has {{len(symbols)}} symbols: see the head of the program")
    return np.asarray([[known.index(symbol) for symbol in symbols]])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    header = json.loads(zipfile.ZipFile(sys.argv[1]).read("checkpoint.json"))
    model, vocabulary = read(sys.argv[1]), header["target_vocabulary"]
    for text in sys.argv[2:]:
        source = spelled(text, header["source_vocabulary"])
        tokens = greedy(model, source, source >= 0, {n})[0].tolist()
        symbols = [vocabulary["symbols"][token] for token in tokens]
        print({separator}.join(s for s in symbols if s not in vocabulary["special"]))
'''


def head(model: Model, sizes: str, needed: set[str], code: str) -> str:
    """The beginning: what the program is, and what its ``code`` imports."""
    c, uses_numpy = model.config, model.xp is np
    modules = {name for name in ("json", "math", "sys", "zipfile") if f"{name}." in code}
    found = {f"import {name}" for name in modules} | needed | {"from types import SimpleNamespace"}
    at_most = f" of at most {c.encoder.max_length} tokens" if c.encoder.max_length else ""
    usage = f"4 8 15    prints the new tokens after this source{at_most}"
    if reads_text(model):
        usage = f"TEXT ...    prints the text after each source{at_most}"
    return HEAD.format(
        n_parameters=count_parameters(c),
        dtype=model.dtype.name,
        usage=usage,
        library="NumPy 2" if uses_numpy else "CuPy 14",
        sizes=sizes,
        imports="\n".join(sorted(found, key=lambda line: (line.startswith("from"), line))),
        xp="numpy" if uses_numpy else "cupy",
    )


def greedy(c: ModelConfig, dtype: str) -> str:
    """The loop, with the rules of the config. Of two tokens that it forces, the last wins."""
    a, begins = c.decoder.self_attention, [*c.begin_suppressed_ids]
    first, last = int(c.forced_bos_id is not None), c.forced_eos_id
    empty = f'np.empty((len(source), {a.n_kv_heads}, n, d), "{dtype}")'
    ban, force = "logits[..., np.asarray({})] = -math.inf", "chosen = np.full(chosen.shape, {})"
    ends = f"~np.isin(ids, np.asarray({c.eos_ids}))"
    if len(c.eos_ids) == 1:
        ends = f"(ids != {c.eos_ids[0]})"
    full = f"np.full((len(source), 1), {c.decoder_start_id})"
    start = (
        f'ids, going = {full}, np.ones((len(source), 1), dtype="bool")',
        f"cache = [[{empty} for _ in range({c.decoder.n_layers})] for d in {(a.d_k, a.d_v)}]",
    )
    rules = (  # at which new token, what is done, by which field, and whether the config has it
        ("", ban.format([*c.suppressed_ids]), "suppressed_ids", c.suppressed_ids),
        (first, ban.format(begins), "begin_suppressed_ids", begins),
        ("", "chosen = logits.argmax(axis=-1)", "", True),
        (0, force.format(c.forced_bos_id), "forced_bos_id", first),
        ("n - 1", force.format(last), "forced_eos_id", last is not None),
        ("", f"ids = np.where(going, chosen, {c.pad_id})", "pad_id", True),
        ("", f"going = going & {ends}", "eos_ids", c.eos_ids),
    )
    choice = []
    for at, code, field, holds in rules:
        if holds:
            choice += [f"        if len(new) == {at}:"] * (at != "")
            lines = layout.wrapped(code, 8 if at == "" else 12)
            choice += layout.with_comment(lines, field and f"# {field}")
    return GREEDY.format(
        start_id=c.decoder_start_id,
        start="\n".join(line for code in start for line in layout.wrapped(code, 4)),
        choice="\n".join(choice),
    )


def ending(model: Model) -> str:
    """The arrays and the command line."""
    c, tree = model.config, TREE.format(dtype=model.dtype.name)
    text = READ.format(result=TIED.format(tree=tree) if c.tied_logits else f"    return {tree}")
    n, longest = c.decoder.max_length or 64, c.encoder.max_length
    limits = {"n": n, "longest_source": f" <= {longest}" if longest else ""}
    if not reads_text(model):
        return text + MAIN_IDS.format(vocab_size=c.encoder.vocab_size, **limits)
    old: Any = model.source_vocabulary
    new: Any = model.target_vocabulary
    split = f"plain.split({json.dumps(old.separator)}) if plain else []"
    symbols = split if old.separator else "list(plain)"
    return text + MAIN_TEXT.format(symbols=symbols, separator=json.dumps(new.separator), **limits)


def reads_text(model: Model) -> bool:
    """Whether the program can read and write text: the checkpoint then has both vocabularies."""
    both = (model.source_vocabulary, model.target_vocabulary)
    return all(isinstance(vocabulary, Vocabulary) for vocabulary in both)
