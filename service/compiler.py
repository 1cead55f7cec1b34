"""Compiles the kernels, in a throw-away process: `python -m service.compiler FOLDER` writes the machine code there.

numba turns each exported function into LLVM's language, with all that it calls. Here these become one module, in which
only the functions for C can be seen from outside, then one object file, then one flat piece of code (see `elf`).

Left to itself numba would make every function, as soon as it is needed, machine code that could be called from Python, and
optimize it again in each function that calls it: a quarter of the time. So LLVM's language is gathered here (`Gatherer`)
and optimized once, by the passes that numba would run. Where there are two processors, two processes compile, each a share.
"""

from __future__ import annotations

import gc
import inspect
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.codegen import Codegen, CodeLibrary
from numba.core.registry import cpu_target

from service.elf import Linked, join, link
from service.kernels import blocks, decimals, recognition, rows
from service.kernels.intrinsics import FEATURES, jit
from service.machine import ControlGroup, default_workers, die_with
from service.machine_code import Image, code_path, write_image

Exported = Callable[..., int]

# All the functions that the serving processes may call.
EXPORTED: tuple[Exported, ...] = (*rows.EXPORTED, *blocks.EXPORTED, *decimals.EXPORTED, *recognition.EXPORTED)
# What one of two processes compiles: 2.2 s; the other takes 2.9 s for the rest (numba 0.68, AMD EPYC, a slow hour). Other shares
# took longer: what calls the same functions belongs together.
FIRST_SHARE: tuple[Exported, ...] = (rows.score_rows, *decimals.EXPORTED, *recognition.EXPORTED)


class Library(CodeLibrary):  # type: ignore[misc]  # numba 0.68 has no type hints
    """What numba lowers one function to. It goes to the gatherer, and is never called here."""

    def add_ir_module(self, ir_module: Any) -> None:
        self.codegen.gathered.append(ir_module)

    def add_linking_library(self, library: Any) -> None:
        """All are in one module in the end."""

    def finalize(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0  # numba's word for a function without a way in from Python

    def get_function(self, name: str) -> Any:
        raise NotImplementedError  # numba asks for it, and for text, only where code is to be called or shown

    get_llvm_str = get_asm_str = get_function


class Gatherer(Codegen):  # type: ignore[misc]  # as above
    """Stands where numba has its compiler in memory (`JITCPUCodegen`), and keeps what that would be given."""

    _library_class = Library

    def __init__(self, machine: Any) -> None:
        self._target_data = machine.target_data
        self._data_layout = str(machine.target_data)
        self.gathered: list[Any] = []

    def _create_empty_module(self, name: str) -> Any:
        module = ir.Module(cgutils.normalize_ir_text(name))
        module.triple, module.data_layout = llvm.get_process_triple(), self._data_layout
        return module

    def _add_module(self, module: Any) -> None:
        raise NotImplementedError  # numba's own puts modules into memory, and nothing here does

    def set_env(self, name: str, env: Any) -> None:
        """What Python's objects a function knows: ours know none, and `elf` refuses others."""


def compile_image() -> Image:
    """Machine code of all exported functions for this CPU, or for the one that numba is told to compile for."""
    # To look for cycles takes a tenth of the time (4.8 s become 4.4 with numba 0.68).
    gc.disable()
    refresh_numba()
    linked = join(compile_shares(deal(default_workers(ControlGroup()))))
    return Image(
        linked.code,
        {function.__name__: (linked.functions[function.__name__], count_arguments(function)) for function in EXPORTED},
    )


def refresh_numba() -> None:
    """Have numba load what it knows of Python and numpy, which takes 0.15 s, before the processes part."""
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()


def deal(processors: int) -> list[tuple[Exported, ...]]:
    """What each process compiles."""
    if processors == 1:
        return [EXPORTED]
    return [FIRST_SHARE, tuple(function for function in EXPORTED if function not in FIRST_SHARE)]


def compile_shares(shares: Sequence[tuple[Exported, ...]]) -> list[Linked]:
    """The first here, each other one in a process of its own, which has numba loaded already."""
    waited_for = [start_share(share) for share in shares[1:]]
    return [compile_share(shares[0]), *map(receive_share, waited_for)]


def start_share(functions: Sequence[Exported]) -> Connection:
    """Where its result will come from.

    A pipe, and no pool of `concurrent.futures`: that has semaphores in /dev/shm, which not every container has.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    context.Process(target=send_share, args=(functions, sender, os.getpid()), daemon=True).start()
    sender.close()
    return receiver


def send_share(functions: Sequence[Exported], sender: Connection, parent: int) -> None:
    die_with(parent)
    try:
        sender.send(compile_share(functions))
    except Exception as error:  # raised where somebody waits for the result
        sender.send(error)


def receive_share(receiver: Connection) -> Linked:
    try:
        result = receiver.recv()
    except EOFError:
        raise RuntimeError("a process that compiles a share of the kernels was killed") from None
    if isinstance(result, Exception):
        raise result
    return result  # type: ignore[no-any-return]  # whatever was sent, which is a `Linked`


def compile_share(functions: Sequence[Exported]) -> Linked:
    machine = create_target_machine()
    module = lower(functions, machine)
    keep_only(module, {function.__name__ for function in functions})
    optimize(module, machine)
    return link(machine.emit_object(module))


def create_target_machine() -> Any:
    """As numba's own, but for code that can be moved."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=numba.config.CPU_NAME or llvm.get_host_cpu_name(),
        features=FEATURES,
        opt=3,
        reloc="pic",
        codemodel="small",
    )


def lower(functions: Sequence[Exported], machine: Any) -> Any:
    """A module with these functions, all that they call, and a way in for C to each under its own name."""
    gatherer = cpu_target.target_context._internal_codegen = Gatherer(machine)
    ways_in = [lower_function(function) for function in functions]
    texts = [cgutils.normalize_ir_text(str(module)) for module in gatherer.gathered] + ways_in
    module = llvm.parse_assembly("")
    module.triple, module.data_layout = llvm.get_process_triple(), str(machine.target_data)
    for text in texts:
        part = llvm.parse_assembly(text)
        part.triple, part.data_layout = module.triple, module.data_layout
        simplify(part, machine)
        module.link_in(part)
    return module


def lower_function(function: Exported) -> str:
    """Have numba lower a function, and give the way in to it."""
    compiled = jit(function)
    arguments = (types.int64,) * count_arguments(function)
    compiled.compile(types.int64(*arguments))
    return way_in(function.__name__, compiled.overloads[arguments].fndesc.llvm_func_name, len(arguments))


def count_arguments(function: Exported) -> int:
    return len(inspect.signature(function).parameters)


def way_in(name: str, inner: str, count: int) -> str:
    """A function for C around one of numba's: it finds its arguments, int64s, at the address that it is given.

    numba's own returns a status, and its result where its first argument says. The status and the place for an exception
    do not matter: code that can raise refers to the exception, and `elf` refuses that.
    """
    loads = "".join(
        f"""
            %at{k} = getelementptr i64, ptr %arguments, i64 {k}
            %a{k} = load i64, ptr %at{k}"""
        for k in range(count)
    )
    return f"""
        declare i32 @"{inner}"({", ".join(["ptr", "ptr", *["i64"] * count])})
        define i64 @{name}(ptr %arguments) {{
            %result = alloca i64
            %error = alloca ptr{loads}
            %status = call i32 @"{inner}"({", ".join(["ptr %result", "ptr %error", *(f"i64 %a{k}" for k in range(count))])})
            %value = load i64, ptr %result
            ret i64 %value
        }}"""


def keep_only(module: Any, names: set[str]) -> None:
    """Hide all functions but these, so that what they do not need can be dropped."""
    for function in module.functions:
        if not function.is_declaration and function.name not in names:
            function.linkage = "internal"


def simplify(module: Any, machine: Any) -> None:
    """Each function by itself, as numba does before it puts them together; after that, numbers are read 6 % slower."""
    builder = create_builder(machine, 3)
    passes = builder.getFunctionPassManager()
    for function in module.functions:
        passes.run(function, builder)


def optimize(module: Any, machine: Any) -> None:
    """By the passes that numba 0.68 runs on a function with all that it calls.

    Without the first ones, which inline and turn loops around, the kernel for splits by category is a fifth slower.
    """
    builder = create_builder(machine, 0)
    passes = builder.getModulePassManager()
    passes.add_loop_rotate_pass()
    passes.add_instruction_combine_pass()
    passes.add_jump_threading_pass()
    passes.run(module, builder)
    builder = create_builder(machine, 3)
    passes = builder.getModulePassManager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, builder)


def create_builder(machine: Any, level: int) -> Any:
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    options.loop_vectorization, options.slp_vectorization = level > 0, False
    return llvm.create_pass_builder(machine, options)


def main(folder: str) -> None:
    die_with(os.getppid())
    Path(folder).mkdir(parents=True, exist_ok=True)  # before the seconds that compiling takes
    write_image(code_path(Path(folder)), compile_image())


if __name__ == "__main__":
    main(*sys.argv[1:])
