"""Model files that want more than to be computed: to read other files, or to run code."""

import io
import json
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from autocompress.errors import ExportError, InputError
from autocompress.export import export
from autocompress.opened import open_run
from autocompress.policy import LayerPolicy
from autocompress.runtimes import runtime_of
from autocompress.runtimes.onnx_file import check_alone
from autocompress.runtimes.pt2_file import check_plain
from autocompress.target import Target
from autocompress.testing import _InOrder, _pictures, _words, toy_student
from autocompress.trial_files import sha256_of
from autocompress.verify import verify
from tests.security.bombs import pickled, saved_by_torch
from tests.toy import copy_run

LOCATIONS = ("weights.bin", "../../secret", "/etc/hostname")


def elsewhere(location: str, where: str = "initializer") -> bytes:
    """A model that adds a weight of 8 floats, which is in another file."""
    tensor = numpy_helper.from_array(np.zeros(8, np.float32), "weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "32"}.items():
        tensor.external_data.add(key=key, value=value)
    given, got = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 8]) for name in ("input", "output"))
    nodes = [helper.make_node("Add", ["input", "weight"], ["output"])]
    if where == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["weight"], value=tensor))
    graph = helper.make_graph(nodes, "g", [given], [got], [tensor] if where == "initializer" else [])
    if where == "subgraph":
        made = [helper.make_node("Constant", [], ["there"], value=tensor)]
        branch = helper.make_graph(made, "b", [], [helper.make_tensor_value_info("there", TensorProto.FLOAT, [8])])
        graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        graph.node.insert(0, helper.make_node("If", ["yes"], ["weight"], then_branch=branch, else_branch=branch))
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    return content


def test_onnxruntime_itself_would_read_the_other_file(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.arange(8, dtype=np.float32).tobytes())
    (tmp_path / "model.onnx").write_bytes(elsewhere("weights.bin"))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": np.zeros((1, 8), np.float32)})[0].tolist() == [list(range(8))]


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("where", ["initializer", "constant", "subgraph"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_weights_in_another_file_are_refused_before_a_session_is_made(location: str, where: str, runtime: str) -> None:
    target = Target(runtime=runtime)
    with pytest.raises(ExportError, match="wants to read another one") as refused:
        runtime_of(target).load(elsewhere(location, where), target)
    assert repr(location) in str(refused.value)


def test_a_file_that_holds_its_weights_may_be_called_as_it_likes() -> None:
    named = onnx.ModelProto.FromString(elsewhere("x"))
    named.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros(8, np.float32), "location"))
    named.graph.node[0].input[1] = "location"
    check_alone(named.SerializeToString())


@pytest.mark.parametrize("which", ["exported", "baseline", "trial"])
def test_verify_and_export_refuse_it_in_one_line(toy_run: Path, tmp_path: Path, which: str) -> None:
    run, into = tmp_path / "run", tmp_path / "exported"
    copy_run(toy_run, run)
    result = export(open_run(run), "smallest", into, max_drop=None)
    bad = {"exported": into / "model.onnx", "baseline": run / "baseline/model.onnx", "trial": run / str(result.model)}[which]
    before = sha256_of(bad.read_bytes())
    bad.write_bytes(elsewhere("/etc/hostname"))
    # Whoever changes the file can change its sum.
    for note in (run / "baseline/baseline.json", run / "trials.jsonl", run / "front.json"):
        note.write_text(note.read_text().replace(before, sha256_of(bad.read_bytes())))

    def use() -> None:
        if which == "trial":
            export(open_run(run), "smallest", tmp_path / "again", max_drop=None)
        else:
            verify(into, run=run)

    with pytest.raises(InputError, match=r"refused: the file wants to read another one, '/etc/hostname'") as refused:
        use()
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def whole() -> bytes:
    target = Target(runtime="torch")
    return runtime_of(target).export(toy_student(LayerPolicy(weight_bits=3)), _pictures(4))


def changed(content: bytes, part: str, change: Callable[[bytes], bytes], **more: bytes) -> bytes:
    """The archive with another content of the part whose name ends so, and `more` parts."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name.endswith(part) else old.read(name))
        for name, added in more.items():
            new.writestr(f"archive/data/{name.replace('__', '/')}", added)
    return file.getvalue()


def in_json(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return apply


def _first_pickled(document: Any) -> None:
    next(iter(document["config"].values()))["use_pickle"] = True


def _opaque(document: Any) -> None:
    weights = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    document["config"]["anything"] = weights


def _size(text: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        value = next(iter(document["graph_module"]["graph"]["tensor_values"].values()))["sizes"]
        value[0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 4}}}

    return change


def _call(target: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["nodes"][0]["target"] = target

    return change


def _bombs(mark: Path) -> dict[str, Callable[[bytes], bytes]]:
    python = f"__import__('pathlib').Path({str(mark)!r}).touch() or 4"
    weight = "data/weights/weight_0"
    return {
        "example": lambda whole: changed(whole, "sample_inputs/model.pt", lambda _: saved_by_torch(mark)),
        "weight": lambda whole: changed(
            changed(whole, "model_weights_config.json", in_json(_first_pickled)), weight, lambda _: saved_by_torch(mark)
        ),
        "constant": lambda whole: changed(
            whole, "model_constants_config.json", in_json(_opaque), constants__opaque_obj_0=pickled(mark)
        ),
        "legacy": lambda whole: changed(whole, "nothing", bytes, **{"weights__model.pt": saved_by_torch(mark)}),
        "size": lambda whole: changed(whole, "models/model.json", in_json(_size(python))),
    }


@pytest.mark.parametrize("bomb", _bombs(Path()))
@pytest.mark.parametrize("runtime", ["torch", "torch-compiled"])
def test_a_file_of_torch_that_would_run_code_is_refused(whole: bytes, tmp_path: Path, bomb: str, runtime: str) -> None:
    mark = tmp_path / "mark"
    content = _bombs(mark)[bomb](whole)
    target = Target(runtime=runtime)
    with pytest.raises(ExportError, match="ours hold tensors and a graph of operators alone"):
        runtime_of(target).load(content, target)
    assert not mark.exists()
    with suppress(Exception):  # what torch itself does with it, whatever it says then
        torch.export.load(io.BytesIO(content))
    assert mark.exists(), "it is no bomb"


def _importing(spelling: str, mark: Path) -> Callable[[bytes], bytes]:
    """Has torch import the module ``bomb`` of the folder of `mark`, as it reads how the inputs are nested."""
    (mark.parent / "bomb.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nlist = list\n")
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    factory = {"default_factory_module": "bomb", "default_factory_name": "list", "dict_context": []}
    entry = json.dumps({"__enum__": True, "fqn": "bomb:list", "name": "one"})
    nodes: dict[str, dict[str, Any]] = {
        "defaultdict": {"type": "collections.defaultdict", "context": factory},
        "__enum__": {"type": "builtins.tuple", "context": entry},
        r"d\u0065faultdict": {"type": "collections.defaultdict", "context": factory},
        r"\u005f_enum__": {"type": "builtins.tuple", "context": entry.replace("__", r"\u005f_", 1)},
    }
    text = json.dumps([1, {**nodes[spelling], "children_spec": [leaf]}])

    def apply(document: Any) -> None:
        document["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = text.replace("defaultdict", spelling)

    return in_json(apply)


@pytest.mark.parametrize("spelling", ["defaultdict", "__enum__", r"d\u0065faultdict", r"\u005f_enum__"])
def test_a_file_of_torch_that_would_import_a_module_is_refused(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bomb", raising=False)
    mark = tmp_path / "mark"
    content = changed(whole, "models/model.json", _importing(spelling, mark))
    with pytest.raises(ExportError, match="wants modules to be imported"):
        runtime_of(Target(runtime="torch")).load(content, Target(runtime="torch"))
    assert not mark.exists()
    with suppress(Exception):
        torch.export.load(io.BytesIO(content))
    assert mark.exists(), "it is no bomb"


def test_a_graph_without_a_bottom_is_refused(whole: bytes) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(ExportError, match="nested too deeply"):
        check_plain(changed(whole, "models/model.json", lambda _: deep))


@pytest.mark.parametrize(
    "target", ["torch.hub.load", "torch.serialization.os.system", "torch.ops.load_library.__call__", "_operator.attrgetter"]
)
def test_a_graph_calls_operators_only(whole: bytes, target: str) -> None:
    with pytest.raises(ExportError, match="which is no operator"):
        check_plain(changed(whole, "models/model.json", in_json(_call(target))))


@pytest.mark.parametrize(
    "size",
    ["eval(chr(49))", "().__class__", "Symbol('s1').__class__", "open(1)", "[s1][0]", "Symbol('a b')", "s1 if s1 else 1"],
)
def test_a_size_is_arithmetic(whole: bytes, size: str) -> None:
    with pytest.raises(ExportError, match="has a size"):
        check_plain(changed(whole, "models/model.json", in_json(_size(size))))


@pytest.mark.parametrize("size", ["s34", "2*s34 + 1", "FloorDiv(s34, 2)", "Symbol('s34', positive=True, integer=True)"])
def test_sizes_that_networks_have_are_taken(whole: bytes, size: str) -> None:
    check_plain(changed(whole, "models/model.json", in_json(_size(size))))


def test_what_we_export_is_taken(whole: bytes) -> None:
    check_plain(whole)
    check_plain(runtime_of(Target(runtime="torch")).export(_InOrder(), (_pictures(5), _words(5))))
