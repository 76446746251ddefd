"""An exported folder: what is written is read, what is damaged is named, nothing is run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from ensembles import EnsembleError
from ensembles.artifact.manifest import (
    MANIFEST,
    Artifact,
    manifest_sha256,
    read_artifact,
    write_manifest,
)
from ensembles.exporting.program import program_files
from ensembles.predict import main
from tests.bombs import PLANTS, plain, zipped

EditManifest = Callable[[Path, Callable[[dict[str, Any]], object]], None]
EXPERTS = ("audio-0000", "early-0000", "video-0000")
WEIGHTS = [
    f"experts/{name}/{file}"
    for name in EXPERTS
    for file in ("plan.json", *(f"fold-{k}.safetensors" for k in range(3)))
]
GRAPHS = [f"experts/{name}.onnx" for name in EXPERTS]
FILES = [*GRAPHS, *WEIGHTS, *program_files()]


def test_the_manifest_comes_back_as_it_was_written(exported: Path, changeable: Path) -> None:
    artifact = read_artifact(exported)
    write_manifest(replace(artifact, folder=changeable))
    again = read_artifact(changeable)
    assert again.to_json() == artifact.to_json()
    assert (changeable / MANIFEST).read_bytes() == (exported / MANIFEST).read_bytes()
    assert sorted(again.members) == list(EXPERTS)
    assert again.inputs == {"audio", "video", "features"}


def test_the_manifest_has_the_checksum_of_every_file_but_the_card(exported: Path) -> None:
    listed = json.loads((exported / MANIFEST).read_text())["files"]
    there = {p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file()}
    assert set(listed) == there - {MANIFEST, "model-card.md"} == set(FILES)


def test_a_note_on_the_model_card_changes_nothing(changeable: Path) -> None:
    before = read_artifact(changeable).to_json()
    with (changeable / "model-card.md").open("a") as file:
        file.write("Deployed by us.")
    assert read_artifact(changeable).to_json() == before


@pytest.mark.parametrize(
    ("found", "instead"),
    [('"weights": [', '"weights": [1e-9, '), ('"angry"', '"happy"'), ('"sample_rate_hz": 1', "")],
)
def test_a_manifest_that_somebody_changed_is_refused(
    changeable: Path, capsys: pytest.CaptureFixture[str], found: str, instead: str
) -> None:
    path = changeable / MANIFEST
    text = path.read_text()
    assert found in text
    path.write_text(text.replace(found, instead or '"sample_rate_hz": 2', 1))
    assert f"'{path}' was changed: it does not match its own" in one_line(capsys, changeable, "x")


def test_a_manifest_may_be_laid_out_anew(changeable: Path) -> None:
    path, before = changeable / MANIFEST, read_artifact(changeable).to_json()
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert read_artifact(changeable).to_json() == before


def remove(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "is missing. Export the run again."),
        (shorten, "is truncated or changed: it does not match its checksum."),
        (empty, "is truncated or changed: it does not match its checksum."),
        (flip, "is truncated or changed: it does not match its checksum."),
    ],
)
def test_whichever_file_is_damaged_it_is_named(
    changeable: Path, damage: Callable[[Path], None], message: str
) -> None:
    for name in FILES:
        content = (changeable / name).read_bytes()
        damage(changeable / name)
        with pytest.raises(EnsembleError, match=re.escape(f"'{changeable / name}' {message}")):
            read_artifact(changeable)
        (changeable / name).write_bytes(content)
    read_artifact(changeable)


def one_line(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs the command; it must end with exit code 2 and one line."""
    assert main([str(a) for a in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("damage", [remove, shorten])
def test_predicting_with_a_damaged_folder_ends_in_one_line(
    changeable: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    damage(changeable / GRAPHS[1])
    assert GRAPHS[1] in one_line(capsys, changeable, "clip.wav")


def test_a_folder_that_is_no_export_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        line = one_line(capsys, folder, "clip.wav")
        assert f"No {MANIFEST} in '{folder}'. Make one with: python -m ensembles.export" in line


def test_a_manifest_is_noticed_to_be_damaged_wherever_it_ends(changeable: Path) -> None:
    path = changeable / MANIFEST
    content = path.read_bytes()
    for length in range(0, len(content) - 1, len(content) // 40):
        path.write_bytes(content[:length])
        with pytest.raises(EnsembleError, match=r"'.*ensemble\.json' is damaged"):
            read_artifact(changeable)


@pytest.mark.parametrize(
    "content", [b"[]", b"null", b"7", b'"text"', b"{}", b"\xff\xfe", b"[" * 100_000]
)
def test_a_manifest_of_something_else_is_damaged(
    changeable: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (changeable / MANIFEST).write_bytes(content)
    assert f"'{changeable / MANIFEST}' is damaged" in one_line(capsys, changeable, "clip.wav")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_told(
    changeable: Path, edit_manifest: EditManifest, version: object
) -> None:
    edit_manifest(changeable, lambda document: document.update(format_version=version))
    with pytest.raises(EnsembleError, match=f"is of format version {version}; .* Export the run a"):
        read_artifact(changeable)


def test_every_key_of_the_manifest_is_needed(changeable: Path, edit_manifest: EditManifest) -> None:
    whole = (changeable / MANIFEST).read_bytes()
    for key in json.loads(whole):
        edit_manifest(changeable, lambda document, key=key: document.pop(key))
        with pytest.raises(EnsembleError, match=f"is damaged: KeyError.'{key}'"):
            read_artifact(changeable)
        (changeable / MANIFEST).write_bytes(whole)


@pytest.mark.parametrize(
    "name", ["../outside.txt", "{parent}/outside.txt", "experts/../../outside.txt", "link.txt"]
)
def test_a_file_outside_the_folder_is_not_read(
    changeable: Path, edit_manifest: EditManifest, name: str
) -> None:
    (changeable.parent / "outside.txt").write_text("secret")
    (changeable / "link.txt").symlink_to(changeable.parent / "outside.txt")
    name = name.format(parent=changeable.parent)
    edit_manifest(changeable, lambda document: document["files"].update({name: "0" * 64}))
    with pytest.raises(
        EnsembleError, match=re.escape(f"names a file outside its folder: '{name}'")
    ):
        read_artifact(changeable)


@pytest.mark.parametrize(
    "name", ["../audio-0000", "/etc/passwd", "a/b", "..", "", ".", "a\x00b", 7]
)
def test_an_experts_name_is_no_path(
    changeable: Path, edit_manifest: EditManifest, capsys: pytest.CaptureFixture[str], name: object
) -> None:
    edit_manifest(changeable, lambda document: document["experts"][0].update(name=name))
    assert "ensemble.json' is damaged: " in one_line(capsys, changeable, "clip.wav")


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Removes the item at a path."""

    def change(document: dict[str, Any]) -> None:
        inner: Any = document
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]

    return change


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    """Replaces the item at a path."""

    def change(document: dict[str, Any]) -> None:
        inner: Any = document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("experts", 0), "audio-0000"),
        (put(["audio-0000", "video-0000", "stranger"], "fused", "experts"), "stranger"),
        (put("stranger", "by_fold", 0, "experts", 0), "stranger"),
        (put("stranger", "substitutes", 0, "experts", 0), "stranger"),
        (put(["audio-0000"], "fused", "experts"), "do not fit 1 experts and 6 classes"),
        (drop("labels", 0), "do not fit [23] experts and 5 classes"),
        (put([float("nan")] * 3, "fused", "rule", "weights"), "not finite"),
        (put("pickle", "fused", "rule", "kind"), "Unknown kind of fusion 'pickle'"),
        (put([], "by_fold", 0), "is damaged"),
        (put("sixty", "frame_size"), "is damaged"),
        (put("often", "sample_rate_hz"), "is damaged"),
        (put(7, "files"), "is damaged"),
        (drop("files", GRAPHS[0]), GRAPHS[0]),
        (drop("files", WEIGHTS[1]), WEIGHTS[1]),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_in_one_line(
    changeable: Path,
    edit_manifest: EditManifest,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    edit_manifest(changeable, change)
    assert re.search(message, one_line(capsys, changeable, "clip.wav"))


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_a_pickle_in_any_file_is_never_run(
    changeable: Path,
    edit_manifest: EditManifest,
    small_run: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    backend: str,
    plant: Callable[[Path, Path], None],
) -> None:
    trace = tmp_path / "trace"
    clip = small_run.media["s03-sad-00"]
    arguments = [changeable, clip, "--features", small_run.features, "--backend", backend]
    read = {"onnx": GRAPHS, "torch": WEIGHTS}[backend]
    for name in read[:2]:  # a plan and weights, or graphs: those of all experts are read alike
        content = (changeable / name).read_bytes()
        plant(changeable / name, trace)
        edit_manifest(changeable, lambda document: None)
        assert str(changeable / name) in one_line(capsys, *arguments)
        assert not trace.exists(), name
        (changeable / name).write_bytes(content)
    for name in set(FILES) - set(read):
        plant(changeable / name, trace)
    edit_manifest(changeable, lambda document: None)
    assert main([str(a) for a in arguments]) == 0
    assert capsys.readouterr().err == ""
    assert not trace.exists()


def test_weights_that_nobody_signed_are_not_taken_in(
    changeable: Path, small_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = changeable / "experts" / "audio-0000"
    (weights / "fold-3.safetensors").write_bytes((weights / "fold-0.safetensors").read_bytes())
    arguments = [changeable, small_run.media["s03-sad-00"], "--backend", "torch"]
    assert f"'{weights}' has 4 fold networks instead of 3" in one_line(capsys, *arguments)


def test_a_folder_without_a_program_of_its_own_is_read(
    changeable: Path, edit_manifest: EditManifest
) -> None:
    edit_manifest(changeable, lambda document: document["files"].pop("predict.py"))
    (changeable / "predict.py").unlink()
    assert sorted(read_artifact(changeable).members) == list(EXPERTS)


def test_the_manifests_own_sha256_stands_for_the_folder(
    changeable: Path,
    edit_manifest: EditManifest,
    small_run: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = hashlib.sha256((changeable / MANIFEST).read_bytes()).hexdigest()
    assert manifest_sha256(changeable) == wanted
    read_artifact(changeable, verify=f" {wanted.upper()}\n")
    clip = small_run.media["s03-sad-00"]
    assert main([str(changeable), str(clip), "--verify", wanted]) == 0
    capsys.readouterr()
    # Whoever changes a file and signs it anew is found out.
    (changeable / "predict.py").write_text("print('mine')")
    edit_manifest(changeable, lambda document: None)
    read_artifact(changeable)
    line = one_line(capsys, changeable, clip, "--verify", wanted)
    assert "is not what was asked for: its SHA-256 is " in line
    assert f"not {wanted} (--verify)." in line
    for odd in ("", "abc", "g" * 64, wanted[:-1]):
        assert "A SHA-256 is 64 hexadecimal digits" in one_line(
            capsys, changeable, clip, "--verify", odd
        )


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_what_lies_beside_is_neither_run_nor_read(
    changeable: Path, small_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    backend: str,
) -> None:  # fmt: skip
    trace = tmp_path / "trace"
    for folder in (changeable, changeable / "experts", changeable / "experts" / "audio-0000"):
        for name in ("weights.pkl", "model.pickle", "joblib.npy"):
            plain(folder / name, trace)
        for name in ("fold-0.pth", "pytorch_model.bin", "best.pt", "last.ckpt"):
            zipped(folder / name, trace)
        for name in ("__init__.py", "torch.py", "sitecustomize.py", "conftest.py"):
            (folder / name).write_text(f"open({str(trace)!r}, 'w')")
    clip = small_run.media["s03-sad-00"]
    assert main([str(changeable), str(clip), "--backend", backend]) == 0
    assert capsys.readouterr().out.count("mkv") == 1
    assert not trace.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda plan, trace: plan.update(architecture="os.system"),
        lambda plan, trace: plan.update(architecture=f"__import__('os').mkdir('{trace}')"),
        lambda plan, trace: plan.update(architecture={"_target_": "os.mkdir", "path": str(trace)}),
        lambda plan, trace: plan["settings"].update({"__class__": "os.mkdir"}),
        lambda plan, trace: plan["settings"].update(width={"_target_": "os.mkdir"}),
        lambda plan, trace: plan.update(shape={"__reduce__": ["os.mkdir", [str(trace)]]}),
        lambda plan, trace: plan.update(frozen="../../../outside.safetensors"),
    ],
)
def test_odd_names_in_a_plan_run_nothing(
    changeable: Path,
    edit_manifest: EditManifest,
    small_run: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any], Path], object],
) -> None:
    path = changeable / "experts" / "audio-0000" / "plan.json"
    plan = json.loads(path.read_text())
    change(plan, tmp_path / "trace")
    path.write_text(json.dumps(plan))
    edit_manifest(changeable, lambda document: None)
    clip = small_run.media["s03-sad-00"]
    assert f"'{path}'" in one_line(capsys, changeable, clip, "--backend", "torch")
    assert not (tmp_path / "trace").exists()


def elsewhere(graph: onnx.ModelProto, location: str) -> None:
    """A tensor's numbers, in another file."""
    tensor = next(one for one in graph.graph.initializer if one.dims)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def foreign(graph: onnx.ModelProto, location: str) -> None:
    """An operator that only a plugged-in library would know."""
    graph.opset_import.add(domain=location, version=1)
    graph.graph.node[0].domain, graph.graph.node[0].op_type = location, "Run"


@pytest.mark.parametrize(
    ("change", "location", "reason"),
    [
        (elsewhere, "{outside}", "it has tensors in other files"),
        (elsewhere, "../../outside.bin", "it has tensors in other files"),
        (elsewhere, "inside.bin", "it has tensors in other files"),
        (foreign, "evil.ops", "is no ONNX graph"),
        (foreign, "{outside}", "is no ONNX graph"),
    ],
)
def test_a_graph_reads_no_file_and_loads_no_library(
    changeable: Path,
    edit_manifest: EditManifest,
    small_run: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[onnx.ModelProto, str], None],
    location: str,
    reason: str,
) -> None:
    for outside in (changeable.parent / "outside.bin", changeable / "experts" / "inside.bin"):
        outside.write_bytes(bytes(1 << 20))
    monkeypatch.chdir(changeable / "experts")
    path = changeable / GRAPHS[0]
    graph = onnx.load_model(path)
    change(graph, location.format(outside=changeable.parent / "outside.bin"))
    path.write_bytes(graph.SerializeToString())
    edit_manifest(changeable, lambda document: None)
    line = one_line(capsys, changeable, small_run.media["s03-sad-00"])
    assert f"'{path}' " in line
    assert reason in line


def available(*kinds: str) -> frozenset[str]:
    return frozenset(kinds)


def test_what_a_clip_has_decides_who_answers(exported: Path) -> None:
    artifact: Artifact = read_artifact(exported)
    whole = artifact.ensemble_for(available("audio", "video", "features"))
    assert set(whole.experts) == set(EXPERTS)
    assert artifact.ensemble_for(available("audio")).experts == ("audio-0000",)
    assert artifact.ensemble_for(available("video", "features")).experts == ("video-0000",)
    with pytest.raises(
        EnsembleError, match=r"^has no audio and no video, which the ensemble needs"
    ):
        artifact.ensemble_for(available("features"))


def test_a_folds_ensemble_has_no_substitute(exported: Path) -> None:
    artifact = read_artifact(exported)
    assert artifact.ensemble_for(available("audio", "video", "features"), 0) == artifact.by_fold[0]
    with pytest.raises(EnsembleError, match=r"^has no video, which the ensemble needs"):
        artifact.ensemble_for(available("audio", "features"), 0)
