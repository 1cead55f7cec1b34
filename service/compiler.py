"""Compiles the kernels, in a throw-away process: `python -m service.compiler FOLDER` writes the machine code there.

numba turns each exported function into LLVM's language, with all that it calls. Here these become one module, in which
only the functions for C can be seen from outside, then one object file, then one flat piece of code (see `elf`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
from numba.core import types

from service import decimals, kernels
from service.elf import link
from service.machine_code import Image, code_path, write_image

# All the functions that the serving processes may call.
EXPORTED = (*kernels.EXPORTED, *decimals.EXPORTED)


def compile_image() -> Image:
    """Machine code of all exported functions for this CPU, or for the one that numba is told to compile for."""
    machine = create_target_machine()
    module = llvm.parse_assembly("")
    for function in EXPORTED:
        module.link_in(compile_function(function))
    keep_only(module, {function.__name__ for function in EXPORTED}, machine)
    linked = link(machine.emit_object(module))
    return Image(
        linked.code,
        {function.__name__: (linked.functions[function.__name__], count_arguments(function)) for function in EXPORTED},
    )


def create_target_machine() -> Any:
    """As numba's own, but for code that can be moved."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=numba.config.CPU_NAME or llvm.get_host_cpu_name(),
        features=kernels.FEATURES,
        opt=3,
        reloc="pic",
        codemodel="small",
    )


def count_arguments(function: Callable[..., int]) -> int:
    return len(inspect.signature(function).parameters)


def compile_function(function: Callable[..., int]) -> Any:
    """A module with this function, all that it calls, and a way in for C under its own name."""
    compiled = kernels.jit(function)
    arguments = (types.int64,) * count_arguments(function)
    compiled.compile(types.int64(*arguments))
    result = compiled.overloads[arguments]
    module = llvm.parse_assembly(result.library.get_llvm_str())
    module.link_in(llvm.parse_assembly(way_in(function.__name__, result.fndesc.llvm_func_name, len(arguments))))
    return module


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


def keep_only(module: Any, names: set[str], machine: Any) -> None:
    """Hide all functions but these, and drop what they do not need."""
    for function in module.functions:
        if not function.is_declaration and function.name not in names:
            function.linkage = "internal"
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3)))


def main(folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)  # before the seconds that compiling takes
    write_image(code_path(Path(folder)), compile_image())


if __name__ == "__main__":
    main(*sys.argv[1:])
