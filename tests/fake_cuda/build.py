"""Compile backend.cpp: `python build.py FOLDER` prints the path of the library, or one line that
says why there is none (exit code 77). This process imports PyTorch without it; the library must be
loaded before PyTorch, so another process uses it (fake.py)."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

# exit code: there is no fake CUDA on this machine, for a reason that is no mistake
CANNOT = 77


class CannotBuild(Exception):
    "Why, in one line."


def build(folder: Path) -> Path:
    "Path of the compiled library, made in `folder` unless it is there."
    import torch
    library = folder / "fake_cuda.so"
    if library.exists():
        return library
    if torch.version.cuda or torch.version.hip or torch.cuda.is_available():
        raise CannotBuild("fake CUDA is for CPU builds of PyTorch without a GPU")
    names = (os.environ.get("CXX", "c++"), "g++", "clang++")
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise CannotBuild("fake CUDA needs a C++ compiler, and there is none on this machine")
    root, partial = Path(torch.__file__).parent, folder / f"{os.getpid()}.partial.so"
    source, abi = Path(__file__).with_name("backend.cpp"), int(torch._C._GLIBCXX_USE_CXX11_ABI)
    command = [compiler, "-O0", "-fPIC", "-shared", "-w", "-std=c++20", str(source),
               "-o", str(partial), f"-I{root / 'include'}",
               f"-I{root / 'include/torch/csrc/api/include'}",
               f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}",
               f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        # the version that backend.cpp was written for
        if torch.__version__.startswith("2.13."):
            raise RuntimeError(done.stderr)
        lines = [line.strip() for line in done.stderr.splitlines() if "error" in line]
        why = lines[0] if lines else "no reason given"
        raise CannotBuild(f"fake CUDA does not compile against PyTorch {torch.__version__}: {why}")
    # several test processes may do this at once
    os.replace(partial, library)
    return library


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1])))
    except CannotBuild as reason:
        print(reason)
        sys.exit(CANNOT)
