"""The parts of a program that are not derived from the forward pass: loop, arrays, command line."""

import json
from typing import Any

from ..config import ModelConfig
from ..model import Model
from ..params import count_parameters
from ..text import Vocabulary
from . import layout

HEAD = '''\
"""A model of {n_parameters:,} parameters, {dtype}, as one program, written out by refseq2seq.

{usage}

{sizes}
Variables have the names of refseq2seq's quantities; a comment has the name where it is another.
"""

{imports}

import {xp} as np
'''

USAGE_IDS = """\
    python model.py model.npz 4 8 15    prints the new tokens, at most {n}, after the source 4 8 15"""

USAGE_TEXT = """\
    python model.py model.npz TEXT ...    prints the text that follows from each"""

ENCODE = '''

def encode(model, source, mask):
    """Mask, keys and values of the source tokens (batch, n); mask (batch, n): True = real token."""
    encoder, decoder, keys, values = model.encoder, model.decoder, [], []
{body}
    return mask, keys, values
'''

STEP = '''

def step(model, ids, t, memory, cache):
    """Logits (batch, 1, vocab_size) after token number t, from 0, of each row: ids (batch, 1)."""
    decoder, (mask, keys, values), (own_keys, own_values) = model.decoder, memory, cache
{body}
'''

GREEDY = '''

def greedy(model, source, mask, n):
    """The most probable next tokens, at most n: (batch, up to n); {pad} after the end of a row."""
    memory, new = encode(model, source, mask), []
{start}
    while len(new) < n and going.any():
        logits = step(model, ids, len(new), memory, cache)
{choice}
        new.append(ids)
    return np.concat(new, axis=1)
'''

TREE = '''

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
    """The model of a checkpoint."""
    arrays = np.load(path)
    names = [name for name in arrays.files if name != "checkpoint.json"]
    model = tree({{name: arrays[name].astype("{dtype}") for name in names}})
{tied}    return model
'''

TIED = """\
    model.decoder.embedding = model.decoder.embedding.copy(order="F")  # read by columns, as .T
"""

MAIN_IDS = """

if __name__ == "__main__":
    source = np.asarray([[int(token) for token in sys.argv[2:]]])
    mask = (0 <= source) & (source < {vocab_size})
    if len(sys.argv) < 3 or not mask.all():
        sys.exit(__doc__)
    print(*greedy(read(sys.argv[1]), source, mask, {n})[0].tolist())
"""

MAIN_TEXT = '''

def spelled(text, vocabulary):
    """The token ids of a text, (1, n)."""
    plain = text.translate({{ord(old): new for old, new in vocabulary["replacements"]}})
    symbols = {symbols}
    known = vocabulary["symbols"]
    if unknown := {{*symbols}} - ({{*known}} - {{*vocabulary["special"]}}):
        sys.exit(f"{{text!r}} has unknown symbols: {{', '.join(sorted(unknown))}}")
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
    modules = {name for name in ("json", "math", "sys", "zipfile") if f"{name}." in code}
    found = {f"import {name}" for name in modules} | needed | {"from types import SimpleNamespace"}
    return HEAD.format(
        n_parameters=count_parameters(model.config),
        dtype=model.dtype.name,
        usage=USAGE_TEXT if reads_text(model) else USAGE_IDS.format(n=longest(model)),
        sizes=sizes,
        imports="\n".join(sorted(found, key=lambda line: (line.startswith("from"), line))),
        xp=model.xp.__name__,
    )


def greedy(c: ModelConfig, dtype: str) -> str:
    """The loop, with the rules of the config. Of two tokens that it forces, the last wins."""
    a, begins = c.decoder.self_attention, [*c.begin_suppressed_ids]
    first, last = int(c.forced_bos_id is not None), c.forced_eos_id
    empty = f'np.empty((len(source), {a.n_kv_heads}, n, d), "{dtype}")'
    full = f"np.full((len(source), 1), {c.decoder_start_id})"
    start = [
        f'ids, going = {full}, np.ones((len(source), 1), dtype="bool")',
        f"cache = [[{empty} for _ in range({c.decoder.n_layers})] for d in {(a.d_k, a.d_v)}]",
    ]
    ban, force = "logits[..., np.asarray({})] = -math.inf", "chosen = np.full_like(chosen, {})"
    ends = f"(ids != np.asarray({c.eos_ids})).all(axis=-1, keepdims=True)"
    if len(c.eos_ids) == 1:
        ends = f"(ids != {c.eos_ids[0]})"
    rules = (  # at which new token, what is done, by which field, and whether the config has it
        ("", ban.format([*c.suppressed_ids]), "suppressed_ids", c.suppressed_ids),
        (first, ban.format(begins), "begin_suppressed_ids", begins),
        ("", "chosen = logits.argmax(axis=-1)", "", True),
        (0, force.format(c.forced_bos_id), "forced_bos_id", first),
        ("n - 1", force.format(last), "forced_eos_id", last is not None),
        ("", f"ids = np.where(going, chosen, {c.pad_id})", "", True),
        ("", f"going = going & {ends}", "", c.eos_ids),
    )
    choice = []
    for at, code, field, holds in rules:
        if holds:
            choice += [f"        if len(new) == {at}:"] * (at != "")
            lines = layout.wrapped(code, 8 if at == "" else 12)
            choice += layout.with_comment(lines, field and f"# {field}")
    return GREEDY.format(
        pad=c.pad_id,
        start="\n".join(line for code in start for line in layout.wrapped(code, 4)),
        choice="\n".join(choice),
    )


def ending(model: Model) -> str:
    """The arrays and the command line."""
    c, dtype = model.config, model.dtype.name
    text = TREE.format(dtype=dtype, tied=TIED if c.tied_logits else "")
    n = longest(model)
    if not reads_text(model):
        return text + MAIN_IDS.format(vocab_size=c.encoder.vocab_size, n=n)
    old: Any = model.source_vocabulary
    new: Any = model.target_vocabulary
    split = f"plain.split({json.dumps(old.separator)}) if plain else []"
    symbols = split if old.separator else "list(plain)"
    return text + MAIN_TEXT.format(symbols=symbols, separator=json.dumps(new.separator), n=n)


def longest(model: Model) -> int:
    """The maximum number of new tokens on the command line."""
    return model.config.decoder.max_length or 64


def reads_text(model: Model) -> bool:
    """Whether the program can read and write text: the checkpoint then has both vocabularies."""
    both = (model.source_vocabulary, model.target_vocabulary)
    return all(isinstance(vocabulary, Vocabulary) for vocabulary in both)
