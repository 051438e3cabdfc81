"""The reader of torch's files: what torch wrote comes out, what is hostile does nothing."""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine.inert_pickle import Machine, Name, Record
from rvcd.mlx_engine.safetensors_file import read_safetensors
from rvcd.mlx_engine.torch_file import read_torch_file
from tests.support.torch_writer import BFloat16, Call, Global, View, dump, save_legacy, save_zip

GOLDEN = Path(__file__).parent / "golden"
BOTH = pytest.mark.parametrize("save", [save_zip, save_legacy])
Save = Callable[[Path, Any], None]


def refusal(path: Path) -> RvcdError:
    with pytest.raises(RvcdError) as caught:
        read_torch_file(path)
    return caught.value


def written(path: Path, obj: Any, save: Save = save_zip) -> Path:
    save(path, obj)
    return path


@pytest.mark.parametrize("name", ["torch-zip.pt", "torch-legacy.pt"])
def test_reads_what_torch_2_13_wrote(name: str) -> None:
    read = read_torch_file(GOLDEN / name)
    base = np.arange(24, dtype=np.float32) / np.float32(7)
    expected = {
        "double": np.array([1 / 3]),
        "int64": np.array([[2**40, -1]]),
        "int32": np.array([5], np.int32),
        "uint8": np.array([0, 255], np.uint8),
        "uint16": np.array([1, 65535], np.uint16),
        "bool": np.array([True, False]),
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "transposed": base.reshape(4, 6).T,
        "offset": base[5:9],
        "strided": base[1:20:3],
        "parameter": np.array([1.5, -2.5], np.float32),
    }
    for entry, array in expected.items():
        np.testing.assert_array_equal(read[entry], array, strict=True)
    np.testing.assert_array_equal(read["weight"]["bf16"], np.float32([1, 3.140625, -19998441472, 9.994507e-4]))
    assert read["weight"]["half"].dtype == np.float16
    assert (read["config"], read["info"], read["f0"]) == ([1025, 32, [3, 7, 11], [[1, 3, 5]] * 3], "7epoch", 1)
    assert (read["size"], read["numpy"], read["default"]) == ((2, 3), 0.25, {"a": 1})
    assert read["args"].state == {"heads": 2}
    assert read["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)


@BOTH
def test_reads_containers_types_and_views(tmp_path: Path, save: Save) -> None:
    base = np.arange(24, dtype=np.float32)
    obj = {
        "nested": [1, 2.5, "é", None, True, -5, 2**40, (1, (2, 3), ()), {"x": {"y": []}}],
        "ordered": OrderedDict([("b", np.float16([[1.5, -2.0]])), ("a", np.array(3.5))]),
        "bfloat16": BFloat16(np.float32([1.0, 3.14159])),
        "strided": View(base, 2, (3, 2), (1, 4)),
        "whole": View(base, 0, (24,), (1,)),
        "bytes": b"\x00\xff",
    }
    read = read_torch_file(written(tmp_path / "model.pt", obj, save))
    assert read["nested"] == obj["nested"]
    assert list(read["ordered"]) == ["b", "a"]
    np.testing.assert_array_equal(read["ordered"]["b"], np.float16([[1.5, -2.0]]), strict=True)
    np.testing.assert_array_equal(read["ordered"]["a"], np.array(3.5), strict=True)
    np.testing.assert_array_equal(read["bfloat16"], np.float32([1.0, 3.140625]), strict=True)
    np.testing.assert_array_equal(read["strided"], [[2, 6], [3, 7], [4, 8]])
    assert np.shares_memory(read["strided"], read["whole"])
    assert read["bytes"] == b"\x00\xff"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_follows_every_pickle_protocol(protocol: int) -> None:
    obj = {"a": [1, -70000, 10**30, 1.5], True: (None, "é\n'\"", ()), "long": list(range(300)), "t": (1, 2, 3, 4)}
    assert Machine(pickle.dumps(obj, protocol)).load() == obj
    cyclic: tuple[list[Any]] = ([],)
    cyclic[0].append(cyclic)
    read = Machine(pickle.dumps(cyclic, protocol)).load()
    assert read[0][0][0] is read[0]


@pytest.mark.parametrize("protocol", [4, 5])
def test_follows_sets_and_bytes_of_newer_protocols(protocol: int) -> None:
    obj = {"set": {1, "a"}, "frozen": frozenset([2]), "bytes": b"\x00" * 300}
    assert Machine(pickle.dumps(obj, protocol)).load() == obj


@BOTH
def test_foreign_objects_become_inert_records(tmp_path: Path, save: Save) -> None:
    foreign = {
        "dictionary": Call(Global("fairseq.data.dictionary", "Dictionary"), state={"symbols": ["<s>"]}, new=True),
        "container": Call(
            Global("omegaconf.dictconfig", "DictConfig"), state={"_ref_type": Global("typing", "Any")}, new=True
        ),
        "choice": Call(Global("fairseq.dataclass.constants", "DDP_BACKEND_CHOICES"), ("c10d",)),
        "args": Call(Global("argparse", "Namespace"), state={"heads": 4}, new=True),
        "counts": Call(Global("collections", "defaultdict"), (Global("builtins", "int"),), items={"a": 1}),
        "path": Call(Global("pathlib", "PosixPath"), ("/", "tmp")),
        "tensor": np.ones(3, np.float32),
    }
    read = read_torch_file(written(tmp_path / "model.pt", foreign, save))
    assert read["dictionary"].name == Name("fairseq.data.dictionary", "Dictionary")
    assert read["dictionary"].state == {"symbols": ["<s>"]}
    assert (read["choice"].args, read["args"].state, read["counts"]) == (("c10d",), {"heads": 4}, {"a": 1})
    assert isinstance(read["path"], Record)
    np.testing.assert_array_equal(read["tensor"], 1.0)


HOSTILE = [
    *(("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"), ("subprocess", "check_output")),
    *(("builtins", "eval"), ("builtins", "exec"), ("builtins", "__import__"), ("builtins", "getattr")),
    *(("__builtin__", "eval"), ("builtins", "open"), ("runpy", "run_path"), ("sys", "exit"), ("shutil", "rmtree")),
    *(("socket", "create_connection"), ("ctypes", "CDLL"), ("importlib", "import_module"), ("pty", "spawn")),
    *(("code", "interact"), ("webbrowser", "open"), ("operator", "attrgetter"), ("functools", "partial")),
    *(("pickle", "loads"), ("types", "FunctionType"), ("commands", "getoutput"), ("os.path", "join")),
]


@BOTH
@pytest.mark.parametrize(("module", "name"), HOSTILE)
def test_refuses_hostile_calls_by_name(tmp_path: Path, save: Save, module: str, name: str) -> None:
    hostile = {"weight": {"a": np.ones(2)}, "payload": Call(Global(module, name), ("echo",))}
    error = refusal(written(tmp_path / "model.pth", hostile, save))
    assert error.code is Code.UNSAFE_PICKLE
    assert f"{module}.{name}" in error.sentence


class _Touch:
    """What an attacker pickles: unpickling it with Python makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_that_calls_os_system_does_not_run(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "proof"
    model = tmp_path / "voice.pth"
    model.write_bytes(pickle.dumps(_Touch(proof), protocol))
    assert refusal(model).code is Code.UNSAFE_PICKLE
    assert not proof.exists()


def test_a_name_cannot_reach_through_a_harmless_module() -> None:
    through = b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93."
    with pytest.raises(RvcdError, match=r"os\.system"):
        Machine(through).load()


def test_state_cannot_be_built_onto_our_own_objects(tmp_path: Path) -> None:
    poison = {"a": Call(Global("torch._utils", "_rebuild_parameter"), (np.ones(2), True, None), state={"shape": ()})}
    read = read_torch_file(written(tmp_path / "m.pt", poison))
    np.testing.assert_array_equal(read["a"], np.ones(2))


def _pickle_only(path: Path, pickled: bytes, data: bytes = b"\0" * 16, name: str = "data/0", **extra: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr(f"archive/{name}", data)
        for entry, content in extra.items():
            archive.writestr(f"archive/{entry}", content)
    return path


def _view(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    return dump({"t": View(np.zeros(4, np.float32), offset, shape, strides)}, legacy=False)[0]


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((5,), (1,), 0),
        ((1,), (1,), 4),
        ((2, 2), (4, 1), 0),
        ((2,), (-1,), 1),
        ((10**6, 10**6), (0, 0), 0),
        ((-1,), (1,), 0),
    ],
)
def test_a_tensor_cannot_leave_or_multiply_its_storage(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> None:
    assert refusal(_pickle_only(tmp_path / "m.pt", _view(shape, strides, offset))).code is Code.NOT_A_CHECKPOINT


@pytest.mark.parametrize("data", [b"", b"\0" * 15])
def test_a_storage_cannot_claim_more_than_its_entry(tmp_path: Path, data: bytes) -> None:
    assert refusal(_pickle_only(tmp_path / "m.pt", _view((1,), (1,)), data)).code is Code.NOT_A_CHECKPOINT


def test_refuses_compressed_entries(tmp_path: Path) -> None:
    model = tmp_path / "m.pt"
    with zipfile.ZipFile(model, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", _view((4,), (1,)))
        archive.writestr("archive/data/0", bytes(16))
    assert "compressed" in refusal(model).sentence


@pytest.mark.parametrize(
    ("pickled", "code"),
    [
        (b"\x80\x02X\xff\xff\xff\xff.", Code.TRUNCATED_FILE),
        (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.", Code.TRUNCATED_FILE),
        (b"\x80\x02}q\x00", Code.TRUNCATED_FILE),
        (b"\x80\x02T\xff\xff\xff\xff.", Code.NOT_A_CHECKPOINT),
        (b"\x80\x02h\x05.", Code.NOT_A_CHECKPOINT),
        (b"\x80\x02R.", Code.NOT_A_CHECKPOINT),
        (b"\x80\x02].a", Code.NOT_A_CHECKPOINT),
        (b"\x80\x02\x82\x01.", Code.NOT_A_CHECKPOINT),
        (b"\x80\x02}(]]u.", Code.NOT_A_CHECKPOINT),
        (b"\x80\x02K\x01K\x01R.", Code.NOT_A_CHECKPOINT),
        (b"\x80\x02K\x01Q.", Code.NOT_A_CHECKPOINT),
    ],
)
def test_a_senseless_pickle_is_refused(tmp_path: Path, pickled: bytes, code: Code) -> None:
    model = _pickle_only(tmp_path / "m.pt", pickled)
    if pickled.endswith(b".a"):
        assert read_torch_file(model) == []  # what follows the end is not read
    else:
        assert refusal(model).code is code


def test_a_key_that_would_take_for_ever_to_hash_is_refused(tmp_path: Path) -> None:
    nested = b"K\x01\x85" + b"2\x86" * 60
    assert refusal(_pickle_only(tmp_path / "m.pt", b"\x80\x02}" + nested + b"K\x01s.")).code is Code.NOT_A_CHECKPOINT


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    for save in (save_zip, save_legacy):
        whole = written(tmp_path / "whole.pt", {"weight": {"a": np.arange(40.0)}}, save).read_bytes()
        cut = tmp_path / "cut.pt"
        for length in range(0, len(whole), 7):
            cut.write_bytes(whole[:length])
            assert refusal(cut).code in (Code.TRUNCATED_FILE, Code.NOT_A_CHECKPOINT), length
        cut.write_bytes(whole[:-60])
        assert refusal(cut).code is Code.TRUNCATED_FILE


def test_damage_anywhere_never_escapes_as_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = set()
    for save in (save_zip, save_legacy):
        whole = written(
            tmp_path / "whole.pt", {"weight": {"a": np.arange(4.0)}, "l": [1, "x", (2.5,)]}, save
        ).read_bytes()
        damaged = tmp_path / "damaged.pt"
        for _ in range(300):
            content = bytearray(whole)
            content[rng.integers(len(content))] = rng.integers(256)
            damaged.write_bytes(content)
            try:
                read_torch_file(damaged)
            except RvcdError as error:
                codes.add(error.code)
    assert {Code.TRUNCATED_FILE, Code.NOT_A_CHECKPOINT} <= codes
    assert codes <= {Code.TRUNCATED_FILE, Code.NOT_A_CHECKPOINT, Code.UNSAFE_PICKLE}


def test_refuses_other_files_by_name(tmp_path: Path) -> None:
    tar = tmp_path / "old.pt"
    tar.write_bytes(b"\0" * 257 + b"ustar" + b"\0" * 300)
    assert "tar format" in refusal(tar).sentence
    text = tmp_path / "text.pth"
    text.write_text("<html>Not found</html>")
    assert refusal(text).code is Code.NOT_A_CHECKPOINT
    big = tmp_path / "big.pt"
    save_zip(big, {"a": np.ones(2)}, byte_order="big")
    assert "big-endian" in refusal(big).sentence
    save_legacy(big, {"a": np.ones(2)}, little_endian=False)
    assert "big-endian" in refusal(big).sentence
    script = _pickle_only(tmp_path / "script.pt", b"\x80\x02}.", name="constants.pkl")
    assert "TorchScript" in refusal(script).sentence
    assert refusal(tmp_path / "absent.pt").code is Code.NOT_FOUND


def _safetensors(path: Path, header: str, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)
    return path


def test_reads_safetensors_with_bfloat16(tmp_path: Path) -> None:
    header = '{"__metadata__":{"kind":"x"},"a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}'
    tensors, metadata = read_safetensors(_safetensors(tmp_path / "m.safetensors", header, b"\x80\x3f\x00\xc0"))
    np.testing.assert_array_equal(tensors["a"], np.float32([[1.0, -2.0]]), strict=True)
    assert metadata == {"kind": "x"}


@pytest.mark.parametrize(
    ("span", "code"),
    [
        ('{"dtype":"F32","shape":[2],"data_offsets":[0,8]}', Code.TRUNCATED_FILE),
        ('{"dtype":"F32","shape":[2],"data_offsets":[0,4]}', Code.NOT_A_CHECKPOINT),
        ('{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}', Code.NOT_A_CHECKPOINT),
        ('{"dtype":"F4","shape":[1],"data_offsets":[0,4]}', Code.NOT_A_CHECKPOINT),
        ("{", Code.NOT_A_CHECKPOINT),
    ],
)
def test_refuses_bad_safetensors(tmp_path: Path, span: str, code: Code) -> None:
    path = _safetensors(tmp_path / "m.safetensors", f'{{"a":{span}}}', b"\0" * 4)
    with pytest.raises(RvcdError) as caught:
        read_safetensors(path)
    assert caught.value.code is code
