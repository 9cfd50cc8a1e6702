#!/usr/bin/env python3
"""Checks printed Triton kernels without a GPU.

    triton_check.py compile DIR      compiles each kernel for its architectures; fails on spilled registers
    triton_check.py run DIR          runs each case on Triton's interpreter and compares results

DIR holds NAME.py (the kernel) and NAME.json: its parameters' types, grid and warps, for `compile` the architectures (`sm_`
and these numbers) and for `run` the contents of each buffer before and after. Needs triton and numpy < 2.4, no torch and no GPU.
"""
import contextlib
import glob
import importlib.util
import io
import json
import os
import re
import sys

TYPES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i32": "i32"}
TOLERANCE = {"f32": 1e-5, "bf16": 1e-2, "f16": 2e-3}


def kernel(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def cases(folder):
    for path in sorted(glob.glob(os.path.join(folder, "*.json"))):
        with open(path) as file:
            yield path[:-5], json.load(file)


def compile_all(folder):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    failed = count = 0
    seen = set()
    for stem, case in cases(folder):
        with open(stem + ".py") as file:
            source = file.read()
        if source in seen:
            continue
        seen.add(source)
        params = case["params"]
        signature = {p["name"] + "_ptr": "*" + TYPES[p["elem"]] for p in params}
        aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(params))}
        for arch in case["archs"]:
            log = io.StringIO()
            # The compiler prints ptxas' report to standard output.
            with contextlib.redirect_stdout(log):
                source = ASTSource(kernel(stem + ".py", case["name"]), signature, attrs=aligned)
                options = {"num_warps": case["warps"]}
                try:
                    triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
                except Exception as e:
                    print(f"{type(e).__name__}: {e}")
            spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", log.getvalue()))
            if "spill" not in log.getvalue() or spilled:
                failed += 1
                print(f"{os.path.basename(stem)} sm_{arch}: {spilled} bytes spilled or no report\n{log.getvalue()[:600]}")
            count += 1
    print(f"{count} compilations of {len(seen)} kernels, {failed} with spills")
    return failed == 0 and count > 0


class Tensor:
    """What Triton's interpreter asks of a torch tensor, over a numpy array; it is its own storage and never copied."""

    def __init__(self, data, dtype):
        self.data, self.dtype = data, dtype

    def data_ptr(self):
        return self.data.ctypes.data

    def untyped_storage(self):
        return self

    def cpu(self):
        return self

    def new_empty(self, *_, **__):
        return Tensor(None, self.dtype)

    def set_(self, storage, *_):
        self.data = storage.data

    def storage_offset(self):
        return 0

    def size(self):
        return self.data.shape

    def stride(self):
        return (1,)

    def copy_(self, _):
        pass


def run_all(folder):
    import numpy as np

    # Not bf16: the interpreter computes with its bits as if they were integers.
    dtypes = {"f32": (np.float32, "float32"), "f16": (np.float16, "float16"), "i32": (np.int32, "int32")}
    failed = count = 0
    for stem, case in cases(folder):
        params = case["params"]
        if any(p["elem"] == "bf16" for p in params):
            continue
        tensors = []
        for p in params:
            dtype, name = dtypes[p["elem"]]
            tensors.append(Tensor(np.array(p["before"], dtype=dtype), name))
        kernel(stem + ".py", case["name"])[tuple(case["grid"])](*tensors, num_warps=case["warps"])
        for p, t in zip(params, tensors):
            want = np.array(p["after"], dtype=np.float64)
            scale = max(1e-3, np.abs(want).max(initial=0))
            error = np.abs(t.data.astype(np.float64) - want).max(initial=0) / scale
            if not error <= TOLERANCE.get(p["elem"], 0):
                failed += 1
                print(f"{os.path.basename(stem)} {p['name']}: differs by {error:.1e} of the largest element")
        count += 1
    print(f"{count} cases run, {failed} results differ")
    return failed == 0 and count > 0


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("compile", "run"):
        sys.exit(__doc__)
    if sys.argv[1] == "run":
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
        os.environ["TRITON_ALWAYS_COMPILE"] = "1"
    sys.exit(0 if {"compile": compile_all, "run": run_all}[sys.argv[1]](sys.argv[2]) else 1)
