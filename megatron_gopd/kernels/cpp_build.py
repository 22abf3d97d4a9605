"""Compiling the C++ backend at first use, once a machine: no compiler and no ninja is needed to install the package."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch.utils import cpp_extension

SOURCES = Path(__file__).parent / "cpp"
TIMEOUT = 600  # seconds
FLAGS = {  # those with which torch compiles its own vector code
    "AVX512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c",
    "AVX2": "-mavx2 -mfma -mf16c",
}


@functools.cache
def load_cpp():
    """The operators torch.ops.megatron_gopd; None, with one warning on rank 0, where they cannot be built.

    Safe under many ranks at once: the first to take the lock builds, the others wait and load its result.
    """
    try:
        torch.ops.load_library(_build())
    except (OSError, subprocess.SubprocessError) as error:
        if os.environ.get("RANK", "0") == "0":
            warnings.warn(
                f"the LM head runs in plain torch, several times slower: its C++ kernel could not be built "
                f"({_reason(error)}). Install g++ 12 or newer, or name a compiler in CXX",
                stacklevel=2,
            )
        return None
    return torch.ops.megatron_gopd


def _build() -> Path:
    """The shared library, compiled unless the cache has it. Its name holds everything it depends on."""
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        raise FileNotFoundError(f"{os.environ.get('CXX') or 'c++'} was not found")
    capability = torch.backends.cpu.get_cpu_capability()
    sources = b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=TIMEOUT).stdout
    key = hashlib.sha256(sources + version + Path(__file__).read_bytes()).hexdigest()[:16]
    folder = _cache() / f"torch-{torch.__version__}-{capability}-{key}"
    library = folder / "linear_logprob.so"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel, also when its holder is killed
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                built = Path(scratch) / library.name
                subprocess.run(_command(compiler, capability, built), capture_output=True, check=True, timeout=TIMEOUT)
                built.replace(library)
    return library


def _command(compiler: str, capability: str, output: Path) -> list[str]:
    include = [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = [item for path in cpp_extension.library_paths() for item in (f"-L{path}", f"-Wl,-rpath,{path}")]
    flags = f"-std=c++20 -O3 -w -fPIC -shared -fopenmp {FLAGS.get(capability, '')}"
    define = f"-DCPU_CAPABILITY={capability} -DCPU_CAPABILITY_{capability} -DAT_PARALLEL_OPENMP=1"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    source = str(SOURCES / "library.cpp")
    words = [*shlex.split(f"{flags} {define} {abi}"), *include, source, "-o", str(output), *libraries]
    return [compiler, *words, "-ltorch_cpu", "-lc10"]


def _cache() -> Path:
    """Where torch keeps its own extensions too."""
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    return (Path(named) if named else Path.home() / ".cache" / "torch_extensions") / "megatron_gopd"


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in error.stderr.decode(errors="replace").splitlines() if "error" in line]
        return lines[0] if lines else f"the compiler ended with {error.returncode}"
    return str(error)
