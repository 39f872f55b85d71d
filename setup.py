"""Builds the native kernels of studio/ml/gguf/native where a C++ compiler is at hand. Without one the studio is installed all the same.

All else about the package stands in pyproject.toml. The library is plain C++ behind C functions, for ctypes: it knows no version of Python.
The compiler is called with our flags alone, since the bytes of a GGUF must not depend on what is in CFLAGS.
"""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NATIVE = Path("studio/ml/gguf/native")
FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden"),
    "-ffp-contract=off",  # a fused multiplication rounds once where llama.cpp rounds twice
    *("-fno-math-errno", "-fno-trapping-math"),  # change no result
    "-Wno-psabi",  # vectors are passed between functions of one file only
]
PLAIN = {"plain": ["-DLANES=4"]}
VARIANTS = {
    "x86_64": PLAIN
    | {
        "avx2": ["-DLANES=8", "-mavx2", "-mf16c"],
        "avx512": ["-DLANES=16", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mf16c", "-mprefer-vector-width=512"],
    }
}
"""What is compiled for which family of processors, and what it may use there; processor.cpp asks whether this one has it."""


class BuildKernels(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        compiler = _compiler()
        objects = Path(self.build_temp)
        objects.mkdir(parents=True, exist_ok=True)
        built = [objects / "processor.o"]
        _run([*compiler, *FLAGS, "-c", str(NATIVE / "processor.cpp"), "-o", str(built[0])])
        for variant, flags in VARIANTS.get(_family(compiler), PLAIN).items():
            built.append(objects / f"{variant}.o")
            _run([*compiler, *FLAGS, *flags, f"-DVARIANT={variant}", "-c", str(NATIVE / "variant.cpp"), "-o", str(built[-1])])
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(".new")
        _run([*compiler, "-shared", *map(str, built), "-o", str(fresh)])
        fresh.replace(target)  # a process may be running the one before


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if not named and not found:
        raise CompileError("There is no C++ compiler. GGUF builds will be about ten times slower; install g++ and then the studio again.")
    return named or [str(found)]


def _family(compiler: list[str]) -> str:
    """Such as x86_64 or aarch64: the processors that this compiler writes for."""
    return _run([*compiler, "-dumpmachine"]).split("-")[0]


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompileError(f"The native kernels could not be built: {error}") from error


setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=[
        Extension(
            "studio.ml.gguf.native.kernels",
            sources=[str(NATIVE / name) for name in ("processor.cpp", "variant.cpp")],
            depends=[str(NATIVE / name) for name in ("lanes.h", "searches.h", "kquants.h", "smallblocks.h", "merging.h")],
            language="c++",
            optional=True,
        )
    ],
)
