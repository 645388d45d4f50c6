"""``refseq2seq vectors``: test vectors for programs in any language, and their comparison."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..files.reading import file_errors
from .options import add_command, add_options, count, whole
from .progress import load

FAMILIES = ("vaswani", "x_transformers", "t5", "everything", "whisper", "captions", "t5gemma")


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "vectors",
        "write test vectors, or compare with them",
        "make vectors --family t5",
        "make vectors --model path/of/a/model",
        "check vectors results/of/my/program",
    )
    actions = command.add_subparsers(required=True, metavar="ACTION")
    make = actions.add_parser("make", help="write vectors into a new directory")
    make.set_defaults(run=_make)
    make.add_argument("directory", type=Path, metavar="DIR", help="new or empty directory")
    family = "model family, may be repeated (default: all)"
    of = make.add_argument_group("model").add_mutually_exclusive_group()
    of.add_argument("--family", action="append", choices=FAMILIES, help=family)
    own = "your own model, with its weights: a checkpoint or the directory of one"
    of.add_argument("--model", metavar="MODEL", help=own)
    config = "your own architecture, with random weights: a config.json as in the vectors"
    of.add_argument("--config", type=Path, metavar="FILE", help=config)
    add_options(
        make,
        ("--cases", count, "N", "cases per family (default: one for each situation)"),
        ("--seed", whole, "SEED", "seed of weights and inputs (default 0)"),
        ("--dtype", ["float64", "float32"], "", "of weights and quantities (default float64)"),
    )
    make.set_defaults(seed=0, dtype="float64")
    check = actions.add_parser("check", help="show the first difference; exit status 1 if any")
    check.set_defaults(run=_check)
    check.add_argument("directory", type=Path, metavar="DIR", help="written by `vectors make`")
    check.add_argument("theirs", type=Path, metavar="THEIRS", help="directory of another program")
    rtol = "tolerance, relative to the largest magnitude of a row; 0 requires the same bits"
    check.add_argument("--rtol", type=float, metavar="R", help=rtol)
    skip = "do not compare: a flag, or a pattern of names of cases or quantities; may be repeated"
    check.add_argument("--skip", action="append", default=[], metavar="NAME", help=skip)
    check.add_argument("--json", action="store_true", help="print a JSON object per file")


def _make(options: argparse.Namespace) -> None:
    from ..testing import vectors
    from ..testing.vectors.cases import read_config

    families = options.family or FAMILIES
    if options.model is not None:
        families = {"model": load(options.model)}
    elif options.config is not None:
        with file_errors(options.config):
            families = {"config": read_config(options.config)}
    names = vectors.make(
        options.directory,
        families=families,
        cases=options.cases,
        seed=options.seed,
        dtype=options.dtype,
    )
    print(f"cases in {options.directory}: {len(names)}")


def _check(options: argparse.Namespace) -> int:
    """Print the comparison of each file, then the report of each that differs."""
    from ..testing import vectors

    checked = vectors.check(options.directory, options.theirs, rtol=options.rtol, skip=options.skip)
    for one in checked:
        if options.json:
            found = {n: (x := getattr(one, n)) and x.to_dict() for n in ("difference", "diagnosis")}
            fields = ("case", "file", "compared", "of", "flags")
            print(json.dumps({n: getattr(one, n) for n in fields} | found))
        else:
            fate = f"{one.difference.name} differs" if one.difference else "no difference"
            print(f"{one.case} {one.file}: {one.compared} of {one.of} names, {fate}")
    differing = [one for one in checked if one.difference]
    for one in () if options.json else differing:
        print(f"\n{one.report()}")
    return 1 if differing else 0
