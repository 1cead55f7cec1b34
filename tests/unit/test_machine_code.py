"""Machine code: laid out flat, written whole, loaded only when it is what was written."""

from __future__ import annotations

import ast
import gc
import importlib.metadata
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from service import compiler
from service.elf import AARCH64, PATCHES, LinkError, join, link
from service.engine import Engine
from service.machine_code import (
    COMPILERS,
    PACKAGE,
    SOURCES,
    Image,
    MachineCode,
    MachineCodeError,
    code_path,
    describe_processor,
    load_code,
    read_image,
    write_image,
)
from tests.unit.engine_models import KINDS, bits, compiled_code, make_rows, train

# Rooms that the sources of machine code use, and put nothing of into it.
ONLY_CALLED = {"service.errors", "service.machine", "service.machine_code"}
TRIPLES = {"x86-64": "x86_64-unknown-linux-gnu", "AArch64": "aarch64-unknown-linux-gnu"}


def assemble(text: str, triple: str = "") -> bytes:
    """An object file of LLVM's language, as the compiler makes it; for this processor unless told otherwise."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(triple or llvm.get_default_triple())
    machine = target.create_target_machine(opt=3, reloc="pic", codemodel="small")
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = target.triple, str(machine.target_data)
    found: bytes = machine.emit_object(module)
    return found


# Constants in a section of their own, a table of them, a function that calls another.
SUMS = """
@primes = private unnamed_addr constant [4 x i64] [i64 2, i64 3, i64 5, i64 7]

define internal i64 @prime(i64 %number) noinline {
    %at = getelementptr [4 x i64], ptr @primes, i64 0, i64 %number
    %value = load i64, ptr %at
    ret i64 %value
}

define i64 @scaled(ptr %arguments) {
    %number = load i64, ptr %arguments
    %prime = call i64 @prime(i64 %number)
    %float = sitofp i64 %prime to double
    %scaled = fmul double %float, 1.25
    %rounded = fptosi double %scaled to i64
    ret i64 %rounded
}

define i64 @total(ptr %arguments) {
    %second = getelementptr i64, ptr %arguments, i64 1
    %a = load i64, ptr %arguments
    %b = load i64, ptr %second
    %total = add i64 %a, %b
    ret i64 %total
}
"""


def make_image() -> Image:
    linked = link(assemble(SUMS))
    return Image(linked.code, {"scaled": (linked.functions["scaled"], 1), "total": (linked.functions["total"], 2)})


# Linking.


def test_code_runs_wherever_it_is_put() -> None:
    """Constants and the functions that it calls come with it."""
    codes = [MachineCode(make_image()) for _ in range(2)]
    for code in codes:
        assert [code.function("scaled")(number) for number in range(4)] == [2, 3, 6, 8]
        assert code.function("total")(2**62, -5) == 2**62 - 5


@pytest.mark.parametrize("triple", TRIPLES.values(), ids=TRIPLES)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("declare i64 @puts(ptr)\ndefine i64 @f(ptr %a) { %r = call i64 @puts(ptr %a)\nret i64 %r }", "needs puts"),
        ("@g = global i64 7\ndefine i64 @f(ptr %a) { store i64 1, ptr @g\nret i64 0 }", "neither code nor constants"),
        ("define i64 @f(ptr %a) { ret i64 1 }\n@p = constant ptr @f", "neither code nor constants"),
    ],
    ids=["calls somebody else", "keeps a state", "holds an address"],
)
def test_code_that_needs_more_than_itself_is_refused(text: str, reason: str, triple: str) -> None:
    with pytest.raises(LinkError, match=reason):
        link(assemble(text, triple))


@pytest.mark.parametrize(
    ("kind", "word", "target", "place", "patched"),
    [
        (275, 0x90000000, 0x3040, 0x0FFC, 0xF0000000),  # adrp x0, three pages on
        (275, 0x90000001, 0x0FFF, 0x4000, 0x90FFFFE1),  # adrp x1, four pages back
        (277, 0x91000000, 0x7123, 0, 0x91048C00),  # add x0, x0, #0x123
        (286, 0xF9400000, 0x1010, 0, 0xF9400800),  # ldr x0, [x0, #16]
        (299, 0x3DC00000, 0x1020, 0, 0x3DC00800),  # ldr q0, [x0, #32]
        (283, 0x94000000, 0x1000, 0, 0x94000400),  # bl, 0x1000 on
        (282, 0x14000000, 0x0FFC, 0x1000, 0x17FFFFFF),  # b, one instruction back
        (261, 0x00000000, 0x0010, 0x0020, 0xFFFFFFF0),
    ],
)
def test_instructions_of_aarch64_are_changed_as_its_manual_says(
    kind: int, word: int, target: int, place: int, patched: int
) -> None:
    assert PATCHES[AARCH64][kind](word, target, place) == patched


def test_what_is_no_object_file_is_refused() -> None:
    with pytest.raises(LinkError, match="not an object file"):
        link(b"\x7fELF, or so it says")
    with pytest.raises(LinkError, match="machine"):
        link(assemble(SUMS, "riscv64-unknown-linux-gnu"))


def test_pieces_run_one_behind_the_other() -> None:
    """Each as if it were alone: what it needs lies in the same distance as before."""
    text = SUMS.replace("i64 7]", "i64 11]").replace("@scaled", "@other").replace("@total", "@sum")
    linked = join([link(assemble(SUMS)), link(assemble(text))])
    code = MachineCode(Image(linked.code, {name: (at, 2) for name, at in linked.functions.items()}))
    assert set(linked.functions) == {"scaled", "total", "other", "sum"}
    assert [code.function("scaled")(number, 0) for number in range(4)] == [2, 3, 6, 8]
    assert [code.function("other")(number, 0) for number in range(4)] == [2, 3, 6, 13]
    assert code.function("total")(3, 4) == code.function("sum")(3, 4) == 7


@pytest.mark.parametrize("processors", [1, 2, 64])
def test_every_function_is_compiled_once(processors: int) -> None:
    shares = compiler.deal(processors)
    dealt = [function for share in shares for function in share]
    assert len(shares) == min(processors, 2)
    assert sorted(map(repr, dealt)) == sorted(map(repr, compiler.EXPORTED))


# Files.


def test_an_image_is_read_as_it_was_written(tmp_path: Path) -> None:
    image = make_image()
    write_image(tmp_path / "a.code", image)
    assert read_image(tmp_path / "a.code") == image
    assert [path.name for path in tmp_path.iterdir()] == ["a.code"]


def test_a_file_that_is_not_what_was_written_is_refused(tmp_path: Path) -> None:
    """Wherever it is changed or cut off."""
    path = tmp_path / "a.code"
    write_image(path, make_image())
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        for wrong in (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
            path.write_bytes(wrong)
            with pytest.raises(MachineCodeError, match="checksum"):
                read_image(path)
    path.unlink()
    with pytest.raises(MachineCodeError, match="No such file"):
        read_image(path)


def test_code_is_kept_by_what_it_was_made_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another target or another compiler has another file; everything else finds the same one."""
    own = code_path(tmp_path)
    assert own == code_path(tmp_path)
    monkeypatch.setenv("NUMBA_CPU_NAME", "x86-64-v3")
    assert code_path(tmp_path) != own
    monkeypatch.delenv("NUMBA_CPU_NAME")
    assert code_path(tmp_path) == own
    versions = {name: importlib.metadata.version(name) for name in COMPILERS}
    monkeypatch.setattr(importlib.metadata, "version", (versions | {"numba": "0.1"}).__getitem__)
    assert code_path(tmp_path) != own


def test_code_is_kept_by_all_that_it_is_made_from() -> None:
    """A constant that is compiled in, and changes somewhere else, would leave the code of yesterday in use."""
    for path in SOURCES:
        imported = {
            node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        }
        for name in imported:
            if name.startswith("service.") and name not in ONLY_CALLED:
                module = PACKAGE.joinpath(*name.split(".")[1:])
                assert {module.with_suffix(".py"), module / "__init__.py"} & set(SOURCES), f"{path} imports {name}"


def test_a_processor_is_what_it_can_do(tmp_path: Path) -> None:
    """Not how fast it runs at the moment, nor how many there are."""
    cpuinfo = tmp_path / "cpuinfo"

    def described(text: str) -> str:
        cpuinfo.write_text(text)
        return describe_processor(cpuinfo)

    one = "processor\t: 0\nmodel name\t: EPYC\ncpu MHz\t\t: 2600.1\nflags\t\t: fpu avx2\n"
    assert described(one) == described(one.replace("2600.1", "3100.0") + "\n" + one)
    assert described(one) != described(one.replace("avx2", "avx2 avx512f"))
    arm = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd\nCPU part\t: 0xd0c\n"
    assert described(arm) != described(arm.replace("asimd", "asimd sve"))


def test_a_compiler_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line; a folder that cannot be made is one way to fail."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(MachineCodeError, match=r"^the kernels cannot be compiled: \S.*$"):
        load_code(tmp_path / "file" / "kernels")
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with pytest.raises(MachineCodeError, match=r"^the kernels cannot be compiled: \S.*$"):
        load_code(tmp_path / "kernels")


# Calling.


def test_a_function_stays_when_everything_else_has_gone() -> None:
    function = MachineCode(make_image()).function("total")
    gc.collect()
    taken = [MachineCode(make_image()) for _ in range(3)]
    assert function(1, 2) == 3
    assert len(taken) == 3


def test_a_missing_argument_is_an_error() -> None:
    """And not a read of whatever lies behind the others."""
    total = MachineCode(make_image()).function("total")
    with pytest.raises(Exception, match="expected 2 items"):
        total(1)
    with pytest.raises(Exception, match="expected 2 items"):
        total(1, 2, 3)


def test_a_row_may_be_at_any_address() -> None:
    """Binary requests are not copied: their rows begin wherever the head ends."""
    sample = train(KINDS["logistic"], seed=1)
    rows = make_rows(sample, 70, seed=1)
    expected = sample.engine.predict(rows)
    for offset in range(1, 5):
        text = bytes(offset) + rows.tobytes()
        view = np.frombuffer(text, np.float32, rows.size, offset).reshape(rows.shape)
        assert (bits(sample.engine.predict(view)) == bits(expected)).all()
        assert (bits(sample.engine.predict(view[:1])) == bits(expected[:1])).all()


def test_engines_share_code() -> None:
    first, second = train(KINDS["logistic"], seed=1), train(KINDS["softprob"], seed=2)
    again = Engine(first.engine.ensemble, compiled_code())
    rows, others = make_rows(first, 40, seed=1), make_rows(second, 40, seed=1)
    expected = first.engine.predict(rows)
    second.engine.predict(others)
    assert (bits(again.predict(rows)) == bits(expected)).all()
