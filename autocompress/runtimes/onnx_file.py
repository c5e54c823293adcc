"""What an ONNX file may refer to: nothing. Ours hold all their weights; others could have any file read."""

from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, TensorProto

from autocompress.errors import ExportError

# The key under which a tensor says where its values are: without it no tensor says so.
_KEY = b"location"


def check_alone(content: bytes) -> None:
    """Raises `ExportError` for an .onnx file with a tensor whose values are in another file, wherever that is."""
    if _KEY not in content:  # nearly always: sessions are made often, and taking a file apart takes longer
        return
    try:
        model = ModelProto.FromString(content)
    except DecodeError:  # whoever loads it says so better
        return
    if (elsewhere := _elsewhere(model)) is not None:
        raise ExportError(f"the file wants to read another one, {elsewhere!r}; ours hold all their weights")


def _elsewhere(message: Message) -> str | None:
    """The first file that a tensor in the message, at any depth, has its values in."""
    if isinstance(message, TensorProto) and (message.data_location == TensorProto.EXTERNAL or message.external_data):
        return next((entry.value for entry in message.external_data if entry.key == "location"), "")
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if isinstance(value, list | tuple) or hasattr(value, "__len__") else (value,):
            if (found := _elsewhere(part)) is not None:
                return found
    return None
