"""What a file of torch.export may hold: tensors, and a graph of registered operators.

`torch.export.load` unpickles what such a file tells it to, evaluates its symbolic sizes as Python, and finds the functions of
its graph by their names anywhere in torch (2.13: ``torch/export/pt2_archive/_package.py`` and
``torch/_export/serde/serialize.py``). Files of ours make use of none of that.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from autocompress.errors import ExportError

_TENSORS = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_GRAPH, _EXAMPLE = "models/model.json", "data/sample_inputs/model.pt"
_NOTES = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
_OPERATOR = re.compile(
    r"torch\.ops\.(?!load_library|import_module|loaded_libraries)[a-z]\w*\.\w+(\.\w+)?"
    r"|torch\.sym_(int|float|max|min|not|sum|sqrt)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|ge|gt|le|lt|eq|ne|and_|or_|not_)"
    r"|math\.(trunc|ceil|floor|sqrt)"
)
# ``Symbol('s34', positive=True, integer=True)``, ``2*s34 + 1``, ``FloorDiv(s34, 2)``.
_NAMED = re.compile(r"Symbol\('[a-z]+\d+'")
_WORDS = frozenset(
    [
        *("Symbol", "positive", "integer", "nonnegative", "True", "False", "oo", "int_oo", "Integer", "Rational", "Float"),
        *(
            "Where",
            "PowByNatural",
            "LShift",
            "RShift",
            "Max",
            "Min",
            "Mod",
            "PythonMod",
            "Add",
            "Mul",
            "Pow",
            "FloorDiv",
            "CeilDiv",
            "CleanDiv",
            "ModularIndexing",
        ),
        *(
            "TruncToInt",
            "FloorToInt",
            "CeilToInt",
            "RoundToInt",
            "IntTrueDiv",
            "FloatTrueDiv",
            "ToFloat",
            "Eq",
            "Ne",
            "Lt",
            "Le",
            "Gt",
            "Ge",
        ),
    ]
)
_WORD, _SYMBOL, _SIGNS = re.compile(r"[A-Za-z_]\w*"), re.compile(r"[a-z]+\d+"), re.compile(r"([\w\s(),=+\-*/<>]|\.\d)*")
# Tells pytree, or the reader of enumerations, to import a module.
_IMPORTS = ("defaultdict", "__enum__")


def check_plain(content: bytes) -> None:
    """Raises `ExportError` for a .pt2 file that holds more than tensors and a graph of registered operators."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            problem = next(_problems(archive), None)
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        NotImplementedError,
        OSError,
    ):
        return  # torch says better what it is not
    except RecursionError:
        problem = "is nested too deeply"
    if problem is not None:
        raise ExportError(f"the file {problem}; ours hold tensors and a graph of operators alone")


def _problems(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    if len(names) != len(set(names)):
        yield "has two parts of one name"
    for name in names:
        part = name.partition("/")[2]
        if part == _GRAPH:
            yield from _of_graph(archive.read(name).decode())
        elif part in _CONFIGS:
            for payload in json.loads(archive.read(name))["config"].values():
                if payload.get("use_pickle") or not _TENSORS.fullmatch(f"{part.rpartition('/')[0]}/{payload['path_name']}"):
                    yield "has pickled objects"
        elif part == _EXAMPLE:
            if archive.getinfo(name).file_size:
                yield "has pickled objects"
        elif part not in _NOTES and not _TENSORS.fullmatch(part):
            yield f"has a part {name!r}"


def _of_graph(text: str) -> Iterator[str]:
    document = json.loads(text)
    if any(word in part for part in _words(document) for word in _IMPORTS):
        yield "wants modules to be imported"
    for key, value in _texts(document):
        if key in ("target", "as_operator") and not _OPERATOR.fullmatch(value):
            yield f"calls {value!r}, which is no operator"
        if key == "expr_str" and not _is_size(value):
            yield f"has a size {value!r}"


def _texts(part: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each text in a JSON document, with the key it stands under."""
    if isinstance(part, dict):
        for name, value in part.items():
            yield from _texts(value, name)
    elif isinstance(part, list):
        for value in part:
            yield from _texts(value, key)
    elif isinstance(part, str):
        yield key, part


def _words(part: Any) -> Iterator[str]:
    """Each text and each key in a JSON document, and in every text that is one itself, as whoever reads it decodes it."""
    if isinstance(part, dict):
        for name, value in part.items():
            yield name
            yield from _words(value)
    elif isinstance(part, list):
        for value in part:
            yield from _words(value)
    elif isinstance(part, str):
        yield part
        try:
            inner = json.loads(part)
        except ValueError:
            return
        yield from _words(inner)


def _is_size(text: str) -> bool:
    rest = _NAMED.sub("Symbol(1", text)
    return bool(_SIGNS.fullmatch(rest)) and all(word in _WORDS or _SYMBOL.fullmatch(word) for word in _WORD.findall(rest))
