"""`refseq2seq vectors`: the format of the files, and the mistakes that each flag names."""

import dataclasses
import hashlib
import json
import struct
from fnmatch import fnmatchcase

import numpy as np
import pytest
import scalar
from command_line import assert_refused, in_process
from vector_mistakes import MISTAKES

import refseq2seq as rs
from refseq2seq.params import build_params
from refseq2seq.testing import vectors
from refseq2seq.testing.rounding import round_to
from refseq2seq.testing.vectors import FAMILIES, drawing, safetensors
from refseq2seq.testing.vectors.cases import outputs_of, read_config
from refseq2seq.testing.vectors.situations import OF_FAMILY

HOME = {flag: family for family, flags in OF_FAMILY.items() for flag in flags}
HOME |= {"GeluForm": "x_transformers"}  # of two families; the others show in x_transformers


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every case of x_transformers, and the first of the other families."""
    root = tmp_path_factory.mktemp("vectors") / "made"
    draw_all, drawn = drawing.draw_cases, []

    def draw(family, of, n, seed, dtype):
        cases = draw_all(family, of, None if family == "x_transformers" else 1, seed, dtype)
        drawn.extend(cases)
        return cases

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors.making, "draw_cases", draw)
        names = vectors.make(root)
    assert names == [case.name for case in drawn]
    return root, drawn


def record(case, folder, fault=None):
    """Run a case as another program would, with a fault or without, and write what passes."""
    folder.mkdir(parents=True)
    changes = fault if callable(fault) else lambda name, x: x
    forward, generation = {}, {}

    def keep_in(kept):
        def tap(name, x):
            y = changes(name, x)
            kept[name] = np.asarray(y)
            return y

        return rs.FunctionTap(tap)

    rs.forward(case.model, case.source, case.target, case.source_mask, tap=keep_in(forward))
    safetensors.write(folder / "forward.safetensors", forward)
    try:
        outputs = outputs_of(case, keep_in(generation))
    except rs.NonFiniteLogitsError:
        return
    if isinstance(fault, tuple):
        outputs[fault[0]] = fault[1](outputs[fault[0]])
    safetensors.write(folder / "generation.safetensors", generation)
    safetensors.write(folder / "outputs.safetensors", outputs)


def first(checked):
    return next((one.difference for one in checked if one.difference), None)


def test_there_is_a_mistake_for_every_flag(made):
    _, drawn = made
    assert MISTAKES.keys() == {flag for case in drawn for flag in case.flags}


@pytest.mark.parametrize("flag", MISTAKES)
def test_a_case_finds_the_mistake_of_its_flag(flag, made, tmp_path, monkeypatch):
    root, drawn = made
    family = HOME.get(flag, "x_transformers")
    case = next(c for c in drawn if flag in c.flags and c.name.startswith(family))
    mistake, place = MISTAKES[flag]
    wrong, fault = mistake(case, monkeypatch)
    record(wrong, tmp_path / case.name, fault)
    found = first(vectors.check(root, tmp_path))
    assert found is not None
    assert fnmatchcase(found.name, place), found


def test_cases_without_the_flag_have_masks_without_holes(made, tmp_path, monkeypatch):
    """Positions that count masked places from the first real token on are right in them."""
    root, drawn = made
    cases = [case for case in drawn if case.name.startswith("x_transformers")]
    has_holes = {case.name: holes(case.source_mask) for case in cases}
    assert has_holes == {case.name: "ScatteredMask" in case.flags for case in cases}
    mistake, _ = MISTAKES["ScatteredMask"]
    for case in (c for c in cases if not has_holes[c.name]):
        wrong, _ = mistake(case, monkeypatch)
        record(wrong, tmp_path / case.name)
    checked = vectors.check(root, tmp_path)
    assert len(checked) == 3 * (len(cases) - 1)
    assert first(checked) is None


def holes(mask):
    """Whether a masked place stands between two real ones."""
    edges = np.abs(np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(int))).sum(axis=1)
    return bool((edges > 2).any())


def test_an_implementation_without_mistakes_passes(made, tmp_path):
    """With sums in BLAS's order: in float32 every place of every case, in float64 of some."""
    root, drawn = made
    for dtype, cases, rtol in (("float32", drawn, 1e-3), ("float64", drawn[::5], None)):
        for case in cases:
            plain = dataclasses.replace(case, model=case.model.to("numpy").astype(dtype))
            record(plain, tmp_path / dtype / case.name)
        checked = vectors.check(root, tmp_path / dtype, rtol=rtol)
        assert len(checked) == 3 * len(cases)
        assert [str(one.difference) for one in checked if one.difference] == []
        assert all(one.compared == one.of for one in checked)


def test_bfloat16_widened_to_float32_agrees_within_rtol(made, tmp_path):
    """Every quantity rounded to bfloat16 on its way, as a program in it computes."""
    root, drawn = made
    cases = [case for case in drawn if case.name.endswith("ordinary")]
    names = {case.name for case in cases}
    for case in cases:
        plain = dataclasses.replace(case, model=case.model.to("numpy").astype("float32"))
        record(plain, tmp_path / case.name, through_bfloat16)

    def agreeing(rtol, *skip):
        checked = vectors.check(root, tmp_path, rtol=rtol, skip=skip)
        return {c.case for c in checked if c.file == "forward" and not c.difference}

    nearly_cancel = {"t5gemma-00-ordinary", "whisper-00-ordinary"}  # some scores
    assert agreeing(None) == set()
    assert agreeing(0.09) >= names - nearly_cancel
    assert agreeing(0.09, "*.scores") == names


def through_bfloat16(name, x):
    return round_to(x, "bfloat16").astype(x.dtype) if x.dtype.kind == "f" else x


def test_equal_files_agree_with_rtol_0(made):
    root, drawn = made
    checked = vectors.check(root, root, rtol=0)
    assert len(checked) == 3 * len(drawn)
    assert first(checked) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_alone_give_the_logits(family, made):
    """Weights and inputs as they are read, through the scalar definition of the model."""
    root, _ = made
    folder = root / f"{family}-00-ordinary"
    weights = safetensors.read(folder / "weights.safetensors")
    inputs = safetensors.read(folder / "inputs.safetensors")
    config = rs.ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    taken = set()

    def array(name, shape):
        taken.add(name)
        assert weights[name].shape == shape
        return weights[name]

    model = rs.Model(config=config, params=build_params(config, array))
    assert taken == set(weights)
    logits = safetensors.read(folder / "forward.safetensors")["logits"]
    for row, real in enumerate(inputs["source_mask"]):
        source = inputs["source"][row, real].tolist()
        expected = np.array(scalar.forward(model, source, inputs["target"][row].tolist()))
        assert np.abs(logits[row] - expected).max() <= 1e-12 * np.abs(expected).max()


def test_the_outputs_are_those_of_the_steps(made):
    root, drawn = made
    for case in (c for c in drawn if c.method["name"] != "beam_search"):
        generation = safetensors.read(root / case.name / "generation.safetensors")
        outputs = safetensors.read(root / case.name / "outputs.safetensors")
        late = case.prefix_lengths - case.prefix_lengths.min()
        for row, n in enumerate(outputs["lengths"]):
            for t in range(n):
                step = f"step.{late[row] + t}"
                assert outputs["tokens"][row, t] == generation[f"{step}.chosen"][row]
                assert outputs["log_probs"][row, t] == generation[f"{step}.log_probs"][row]


def test_weights_are_values_of_every_format(made):
    _, drawn = made
    for case in drawn[:1] + drawn[-1:]:
        for dtype in ("float16", "bfloat16", "float32"):
            rs.testing.rounding.check_rounded(case.model, dtype)


def test_masked_places_are_not_compared(made, tmp_path):
    root, drawn = made
    case = next(c for c in drawn if c.name == "x_transformers-01-left_padding")
    record(case, tmp_path / case.name)
    path = tmp_path / case.name / "forward.safetensors"
    theirs = safetensors.read(path)
    masked = ~case.source_mask
    for name in ("encoder.embed", "encoder.final"):
        theirs[name] = np.where(masked[..., None], np.nan, theirs[name])
    for name in theirs:
        if name.endswith("cross_attention.scores"):
            theirs[name] = np.where(masked[:, None, None], -np.inf, theirs[name])
        if name.startswith("decoder") and name.endswith("self_attention.scores"):
            theirs[name] = np.where(np.tri(4, dtype=bool), theirs[name], -np.inf)
    safetensors.write(path, theirs)
    assert first(vectors.check(root, tmp_path)) is None
    theirs["encoder.final"][0, -1, 0] = np.nan
    safetensors.write(path, theirs)
    assert first(vectors.check(root, tmp_path)).reason == "not finite"


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    options = {"families": ["vaswani", "t5"], "cases": 1}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        vectors.make(tmp_path / name, seed=seed, **options)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 2 * 7 + 1
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    sums = [(tmp_path / name / "SHA256SUMS").read_text() for name in "abc"]
    assert sums[0] == sums[1] != sums[2]


def test_situations_repeat_with_other_numbers():
    a, b = (drawing._drawn("t5", FAMILIES["t5"], i, "ordinary", 0, "float64") for i in (0, 12))
    assert not np.array_equal(a.source, b.source)
    names = drawing.situations_of(FAMILIES["t5"])
    assert "table_end" not in names
    assert len(names) == 12


def test_float32_has_the_same_weights_and_near_quantities(tmp_path):
    for dtype in ("float64", "float32"):
        vectors.make(tmp_path / dtype, families=["vaswani"], cases=1, dtype=dtype)
    folders = [tmp_path / dtype / "vaswani-00-ordinary" for dtype in ("float64", "float32")]
    a, b = (safetensors.read(folder / "weights.safetensors") for folder in folders)
    assert all(b[name].dtype == np.float32 and np.array_equal(a[name], b[name]) for name in a)
    a, b = (safetensors.read(folder / "forward.safetensors")["logits"] for folder in folders)
    assert b.dtype == np.float32
    assert 0 < np.abs(a - b).max() < 1e-5


def test_the_files_of_frames(made):
    root, drawn = made
    folder = root / "whisper-00-ordinary"
    (case,) = (case for case in drawn if case.name == folder.name)
    inputs = safetensors.read(folder / "inputs.safetensors")
    assert inputs["source"].dtype == np.float64
    assert inputs["source"].shape == (3, 9, 5)
    assert inputs["source_mask"].sum(axis=1).tolist() == [9, 6, 3]  # by hand: (n + 1) // 2 windows
    assert (inputs["source"][~inputs["source_mask"]] != 0).any()  # padding that must be left out
    assert np.array_equal(inputs["source"], round_to(inputs["source"], "bfloat16"))
    forward = safetensors.read(folder / "forward.safetensors")
    assert [*forward][:5] == [
        "encoder.frames", "encoder.frame_layers.0.projected", "encoder.frame_layers.0.out",
        "encoder.frame_layers.1.projected", "encoder.frame_layers.1.out",
    ]  # fmt: skip
    shapes = [x.shape for x in forward.values()][:6]
    assert shapes == [(3, 9, 5), (3, 9, 14), (3, 9, 14), (3, 5, 14), (3, 5, 14), (3, 5, 14)]
    kernel = safetensors.read(folder / "weights.safetensors")["encoder.frame_layers.1.w_in"]
    assert kernel.shape == (3 * 14, 14) == case.model.params.encoder.frame_layers[1].w_in.shape


def test_masked_frames_and_windows_are_not_compared(made, tmp_path):
    root, _ = made
    folder = tmp_path / "captions-00-ordinary"
    folder.mkdir()
    theirs = safetensors.read(root / folder.name / "forward.safetensors")
    mask = safetensors.read(root / folder.name / "inputs.safetensors")["source_mask"]
    assert not mask.all()
    for name in ("encoder.frames", "encoder.frame_layers.0.out"):
        theirs[name] = np.where(mask[..., None], theirs[name], np.nan)
    classes = np.ones((3, 2), dtype=bool)
    real = np.concat([classes, mask], axis=1)
    theirs["encoder.tokens"] = np.where(real[..., None], theirs["encoder.tokens"], np.nan)
    safetensors.write(folder / "forward.safetensors", theirs)
    assert first(vectors.check(root, tmp_path)) is None
    theirs["encoder.tokens"][0, 0, 0] = np.nan
    safetensors.write(folder / "forward.safetensors", theirs)
    assert first(vectors.check(root, tmp_path)).reason == "not finite"


def test_a_model_that_joins_too_many_frames_is_refused(tmp_path):
    c = FAMILIES["whisper"]
    layer = dataclasses.replace(c.encoder.input.layers[0], stride=2000)
    source = dataclasses.replace(c.encoder.input, layers=(layer,))
    mine = dataclasses.replace(c, encoder=dataclasses.replace(c.encoder, input=source))
    with pytest.raises(ValueError, match=r"families\['mine'\] .* 4096 frames, .* 3"):
        vectors.make(tmp_path / "new", families={"mine": mine})


def as_version_1(root):
    """Rewrite files as version 1 had them: without the fields that came later."""
    for path in root.rglob("config.json"):
        c = json.loads(path.read_text())
        del c["logits_softcap"]
        for stack in (c["encoder"], c["decoder"]):
            stack["vocab_size"] = stack.pop("input")["vocab_size"]
            del stack["windows"]
            for name in ("self_attention", "cross_attention"):
                (stack[name] or {}).pop("softcap", None)
        path.write_text(json.dumps(c))
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["version"] == 2
    (root / "manifest.json").write_text(json.dumps(manifest | {"version": 1}))
    (root / "SHA256SUMS").write_text(vectors.making.checksums(root))


def test_vectors_of_version_1_are_compared(tmp_path, capsys):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    (name,) = vectors.make(ours, families=["everything"], cases=1)
    as_version_1(ours)
    assert first(vectors.check(ours, ours, rtol=0)) is None
    found = safetensors.read(ours / name / "forward.safetensors")
    (theirs / name).mkdir(parents=True)
    safetensors.write(theirs / name / "forward.safetensors", {"logits": 2 * found["logits"]})
    (checked,) = vectors.check(ours, theirs)
    assert [fault.name for fault in checked.diagnosis.faults] == ["logits"]
    call = in_process(capsys, "vectors")
    config = ours / name / "config.json"
    assert call("make", tmp_path / "new", "--config", config, "--cases", "1")[0] == 0
    new = tmp_path / "new" / "config-00-ordinary" / "config.json"
    assert read_config(new) == read_config(config) == FAMILIES["everything"]
    config.write_text("[]")
    assert_refused(call("make", tmp_path / "other", "--config", config), "config.json")


def test_manifest_and_checksums(made):
    root, drawn = made
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["made_with"] == {"refseq2seq": rs.__version__, "numpy": np.__version__}
    assert [case["name"] for case in manifest["cases"]] == [case.name for case in drawn]
    assert set(manifest["notes"]) == {flag for case in drawn for flag in case.flags}
    assert all(
        note.keys() == {"bugType", "description", "effect"} for note in manifest["notes"].values()
    )
    lines = (root / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 7 * len(drawn) + 1
    for line in lines:
        digest, path = line.split("  ")
        assert digest == hashlib.sha256((root / path).read_bytes()).hexdigest()


# The format, byte for byte


def test_the_bytes_of_a_file(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, {"a": np.array([[1.5, -2.0]]), "b": np.array(7), "c": np.array([True])})
    header = (
        b'{"a":{"dtype":"F64","shape":[1,2],"data_offsets":[0,16]},'
        b'"b":{"dtype":"I64","shape":[],"data_offsets":[16,24]},'
        b'"c":{"dtype":"BOOL","shape":[1],"data_offsets":[24,25]}}'
    )
    header += b" " * (-len(header) % 8)
    data = struct.pack("<ddq?", 1.5, -2.0, 7, True)
    assert path.read_bytes() == struct.pack("<Q", len(header)) + header + data


ARRAYS = {
    "F64": np.array([[0.1, -np.inf], [5e-324, -0.0]]),
    "F32": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "F16": np.zeros((0, 3), np.float16),
    "I64": np.array([-1, 2**62]),
    "I32": np.array(3, np.int32),
    "BOOL": np.array([[True, False]]),
}


def test_the_safetensors_library_reads_and_writes_the_same_files(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="needs safetensors")
    safetensors.write(tmp_path / "ours", ARRAYS)
    arrays = {name: np.array(x, order="C") for name, x in ARRAYS.items()}
    numpy.save_file(arrays, tmp_path / "theirs", metadata={"made by": "somebody"})
    for found in (numpy.load_file(tmp_path / "ours"), safetensors.read(tmp_path / "theirs")):
        assert found.keys() == ARRAYS.keys()
        for name, x in arrays.items():
            assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)
            assert found[name].tobytes() == x.tobytes()


def test_big_endian_and_strided_arrays_are_written(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, {"x": np.arange(6.0, dtype=">f8").reshape(2, 3)[:, ::-2]})
    assert safetensors.read(path)["x"].tolist() == [[2.0, 0.0], [5.0, 3.0]]


def entry(begin=0, end=16, shape=(2,), dtype="F64"):
    return {"x": {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}}


def packed(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed(entry(), b""), "bytes 0 to 16"),
        (packed(entry(end=8), bytes(16)), "bytes 0 to 8"),
        (packed(entry(begin=-16, end=0), bytes(16)), "integers >= 0"),
        (packed(entry(shape=(2.0,)), bytes(16)), "integers >= 0"),
        (packed(entry(end=16, begin=8, shape=(1,)), bytes(16)), "bytes 8 to 16"),
        (packed(entry(shape=(3,)), bytes(16)), r"shape \[3\]"),
        (packed(entry(dtype="F8_E4M3"), bytes(2)), r"x has dtype F8_E4M3"),
        (packed(entry(dtype=[]), bytes(16)), "not a complete safetensors file"),
        (packed(entry(), bytes(17)), "no array"),
        (packed({"x": 3}, b""), "not a complete safetensors file"),
        (packed([], b""), "JSON object"),
        (packed(b"{", b""), "not JSON"),
        *[(content, "cut off") for content in (b"", bytes(8), struct.pack("<Q", 2**62) + b"{}")],
    ],
)
def test_bad_safetensors_files_raise(content, message, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        safetensors.read(path)
    assert str(path) in str(error.value)


def test_bfloat16_is_read_as_float32(tmp_path):
    path = tmp_path / "x.safetensors"
    halves = struct.pack("<3H", 0x3FC0, 0xC000, 0x0001)  # 1.5, -2, 2^-133
    path.write_bytes(packed(entry(end=6, shape=(3,), dtype="BF16"), halves))
    (x,) = safetensors.read(path).values()
    assert (x.dtype, x.tolist()) == (np.float32, [1.5, -2.0, 2.0**-133])


def test_other_dtypes_are_not_written(tmp_path):
    with pytest.raises(TypeError, match="x has dtype complex128"):
        safetensors.write(tmp_path / "x", {"x": np.array([1j])})


# Wrong arguments


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        ("new", {"families": ["bart"]}, r"families .*'bart'"),
        ("new", {"dtype": "float16"}, "dtype"),
        (".", {}, "is not empty"),
    ],
)
def test_wrong_arguments_of_make_raise(folder, options, message, tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match=message):
        vectors.make(tmp_path / folder, **options)


def test_check_names_the_files_it_cannot_compare(made, tmp_path):
    root, drawn = made
    with pytest.raises(ValueError, match="nothing to compare"):
        vectors.check(root, tmp_path)
    (tmp_path / "mycase").mkdir()
    with pytest.raises(ValueError, match="mycase"):
        vectors.check(root, tmp_path)
    (tmp_path / "mycase").rename(tmp_path / drawn[0].name)
    path = tmp_path / drawn[0].name / "forward.safetensors"
    safetensors.write(path, {"encoder.embedding": np.zeros(3)})
    with pytest.raises(ValueError, match=r"forward.safetensors: .* 'encoder.embedding'"):
        vectors.check(root, tmp_path)
    safetensors.write(path, {"logits": np.zeros(3)})
    assert first(vectors.check(root, tmp_path)).reason == "shape"


def test_a_batch_axis_is_missing_in_positions_only(made, tmp_path):
    """Padding on the right moves no real token: one array of positions serves all rows."""
    root, drawn = made
    case = next(c for c in drawn if c.name == "x_transformers-00-ordinary")
    ours = safetensors.read(root / case.name / "forward.safetensors")
    path = tmp_path / case.name / "forward.safetensors"
    path.parent.mkdir()
    safetensors.write(path, {"encoder.positions": ours["encoder.positions"][0]})
    assert first(vectors.check(root, tmp_path)) is None
    for name in ("encoder.tokens", "logits"):
        safetensors.write(path, {name: ours[name][0]})
        assert first(vectors.check(root, tmp_path)).reason == "shape"


def test_changed_vectors_raise(tmp_path):
    root = tmp_path / "made"
    (name,) = vectors.make(root, families=["vaswani"], cases=1)
    path = root / name / "outputs.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"{name}/outputs.safetensors .*SHA256SUMS"):
        vectors.check(root, root)
    path.unlink()
    with pytest.raises(ValueError, match="SHA256SUMS"):
        vectors.check(root, root)


def test_the_command_line(tmp_path, capsys):
    call = in_process(capsys, "vectors")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    made = call("make", ours, "--family", "t5", "--cases", "1")
    assert made == (0, f"cases in {ours}: 1\n", "")
    folder = theirs / "t5-00-ordinary"
    folder.mkdir(parents=True)
    logits = safetensors.read(ours / folder.name / "forward.safetensors")["logits"]
    safetensors.write(folder / "forward.safetensors", {"logits": logits})
    status, out, _ = call("check", ours, theirs, "--rtol", "0")
    assert status == 0
    assert "t5-00-ordinary forward: 1 of 85 names" in out
    safetensors.write(folder / "forward.safetensors", {"logits": logits * (1 + 1e-6)})
    status, out, err = call("check", ours, theirs)
    assert (status, err) == (1, "")
    assert "logits differs" in out
    assert "1e-06" in out
    status, out, _ = call("check", ours, theirs, "--json")
    assert (status, json.loads(out)["difference"]["name"]) == (1, "logits")
    assert call("check", ours, theirs, "--rtol", "1e-5")[0] == 0
    assert_refused(call("check", ours, tmp_path / "nowhere"), "nowhere")
