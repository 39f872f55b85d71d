"""A GGUF's header is read strictly: what our exporter and the gguf package write is understood, what a stranger forged is refused."""

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from studio.ml.gguf.header import TENSOR_TYPES, Entry, InvalidGguf, read_header
from studio.ml.gguf.writing import Planned, header_bytes, write_small


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def forged(*, tensors: int = 0, entries: int = 0, body: bytes = b"", version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, entries) + body


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def uint32(key: bytes, value: int) -> bytes:
    return string(key) + struct.pack("<II", 4, value)


def padded(header: bytes, data: int) -> bytes:
    return header.ljust(-(-len(header) // 32) * 32, b"\0") + bytes(data)


def test_what_the_gguf_package_writes_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_token_list(["a", "b"])
    writer.add_token_scores([0.5, -1.0])
    writer.add_tensor("one", np.ones((4, 32), np.float32))
    writer.add_tensor("two", np.ones((3,), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = read_header(path)

    assert header.get("llama.block_count") == 3
    assert header.entries["tokenizer.ggml.tokens"] == Entry("ARRAY", ["a", "b"], "STRING")
    assert header.get("tokenizer.ggml.scores") == [0.5, -1.0]
    assert header.tensors["one"].shape == (32, 4) and header.tensors["one"].size == 512
    assert header.tensors["two"].type == "F16" and header.size == path.stat().st_size


def test_what_we_write_the_gguf_package_understands(tmp_path: Path) -> None:
    path, content = tmp_path / "model.gguf", np.arange(64, dtype=np.float32)
    entries = {
        "general.architecture": Entry("STRING", "llama"),
        "a.flag": Entry("BOOL", True),
        "a.number": Entry("UINT32", 7),
        "a.list": Entry("ARRAY", [1, 2, 3], "INT32"),
    }
    write_small(path, entries, [(Planned("t", (2, 32), "F32", 256), content.view(np.uint8))])

    reader = gguf.GGUFReader(path)

    assert reader.fields["a.flag"].contents() is True
    assert reader.fields["a.list"].contents() == [1, 2, 3]
    assert np.array_equal(reader.tensors[0].data, content.reshape(2, 32))
    assert read_header(path).entries == entries


def test_the_table_of_types_is_that_of_ggml() -> None:
    for number, (name, block, size) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (name, block, size)


def test_a_file_that_ends_anywhere_too_early_is_refused(tmp_path: Path) -> None:
    entries = {"general.architecture": Entry("STRING", "llama"), "a.list": Entry("ARRAY", ["x", "y"], "STRING")}
    whole = header_bytes(entries, [Planned("t", (2, 32), "F32", 256)]) + bytes(256)
    path = tmp_path / "cut.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidGguf):
            read_header(path)
    path.write_bytes(whole)
    assert read_header(path).get("general.architecture") == "llama"


FORGERIES: dict[str, Callable[[], bytes]] = {
    "another format": lambda: forged(magic=b"GGML"),
    "an unknown version": lambda: forged(version=9),
    "big endian": lambda: b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "more tensors than could be": lambda: forged(tensors=1 << 60),
    "more entries than could be": lambda: forged(entries=(1 << 64) - 1),
    "a key longer than the file": lambda: forged(entries=1, body=struct.pack("<Q", 1 << 62) + b"x"),
    "a string longer than allowed": lambda: forged(entries=1, body=string(b"k") + struct.pack("<IQ", 8, 1 << 40)),
    "an array longer than allowed": lambda: forged(entries=1, body=string(b"k") + struct.pack("<IIQ", 9, 4, 1 << 50)),
    "an array of arrays": lambda: forged(entries=1, body=string(b"k") + struct.pack("<IIQ", 9, 9, 1)),
    "a value of no type": lambda: forged(entries=1, body=string(b"k") + struct.pack("<II", 77, 1)),
    "a key twice": lambda: forged(entries=2, body=uint32(b"k", 1) * 2),
    "a key that is no text": lambda: forged(entries=1, body=uint32(b"\xff\xfe", 1)),
    "an alignment of nothing": lambda: forged(entries=1, body=uint32(b"general.alignment", 0)),
    "an alignment of three": lambda: forged(entries=1, body=uint32(b"general.alignment", 3)),
    "a tensor twice": lambda: padded(forged(tensors=2, body=tensor() + tensor(offset=128)), 256),
    "tensors that overlap": lambda: padded(forged(tensors=2, body=tensor() + tensor(b"u")), 256),
    "a tensor behind the end": lambda: padded(forged(tensors=1, body=tensor(offset=1 << 40)), 128),
    "a tensor of unknown type": lambda: padded(forged(tensors=1, body=tensor(kind=999)), 128),
    "a tensor of five dimensions": lambda: padded(forged(tensors=1, body=tensor(shape=(1, 1, 1, 1, 1))), 128),
    "a tensor without columns": lambda: padded(forged(tensors=1, body=tensor(shape=(0,))), 128),
    "a size that overflows": lambda: padded(forged(tensors=1, body=tensor(shape=(1 << 33, 1 << 33))), 128),
    "half a block": lambda: padded(forged(tensors=1, body=tensor(shape=(33,), kind=8)), 128),
    "a name longer than ggml allows": lambda: padded(forged(tensors=1, body=tensor(b"n" * 64)), 128),
    "more data than described": lambda: padded(forged(tensors=1, body=tensor()), 4096),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_file_is_refused(tmp_path: Path, forgery: str) -> None:
    path = tmp_path / "forged.gguf"
    path.write_bytes(FORGERIES[forgery]())
    with pytest.raises(InvalidGguf, match="not a sound GGUF"):
        read_header(path)
