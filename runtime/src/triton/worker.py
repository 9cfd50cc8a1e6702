"""Compiles Triton kernels ahead of time: a request a line on standard input, an answer a line on standard output.

Prints {"triton": VERSION} when it is ready. A request is {"name", "source", "types", "warps", "stages", "arch"}: the function's
name, a module's source, the element types of its pointers, stages of pipelined loops or null, and a compute capability such
as 90. The answer is
{"cubin": BASE64, "registers", "spill_bytes", "stack_bytes", "shared_bytes", "parameters", "sass"} or {"error": TEXT}. No GPU is needed.
"""
import base64
import collections
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile

# Only answers go to standard output; what compilers print goes to standard error.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

# The register allocator's report is wanted, so nothing may come from Triton's own cache.
os.environ["TRITON_ALWAYS_COMPILE"] = "1"
os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
os.environ.pop("TRITON_INTERPRET", None)

TYPES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i32": "i32", "u32": "u32"}
# Tensor-core instructions, from Ampere to Blackwell.
TENSOR = re.compile(r"\b((?:HMMA|HGMMA|UTCHMMA|UTCQMMA|IMMA|QGMMA))\b")


def say(answer):
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def sass(folder, cubin):
    """How many tensor-core instructions of each kind there are; nothing without a disassembler."""
    import triton

    tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "nvdisasm")
    path = os.path.join(folder, "kernel.cubin")
    with open(path, "wb") as file:
        file.write(cubin)
    try:
        text = subprocess.run([tool, "-c", path], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(sorted(collections.Counter(TENSOR.findall(text)).items()))


def report(log):
    """Registers, and bytes of stack and spills, that ptxas says a kernel has."""
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    stack = [int(n) for n in re.findall(r"(\d+) bytes stack frame", log)]
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", log)]
    if not registers or not stack:
        raise RuntimeError("ptxas gave no report: " + log.strip()[:500])
    return {"registers": max(registers), "stack_bytes": max(stack), "spill_bytes": sum(spills)}


def parameters(ptx):
    """How many parameters the kernel takes, hidden ones included."""
    return len(re.findall(r"\.param\s+\.\w+", ptx[ptx.index(".entry") : ptx.index("{", ptx.index(".entry"))]))


def build(request, folder):
    import contextlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    path = os.path.join(folder, "kernel.py")
    with open(path, "w") as file:
        file.write(request["source"])
    spec = importlib.util.spec_from_file_location("kernel", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, request["name"], None)
    if function is None:
        raise RuntimeError(f"there is no function {request['name']} in it")
    names = getattr(function, "arg_names", None)
    if names is None:
        raise RuntimeError(f"{request['name']} is no @triton.jit function")
    if len(names) != len(request["types"]):
        raise RuntimeError(f"it takes {len(names)} parameters, its launch gives {len(request['types'])}")
    options = {"num_warps": request["warps"]}
    if request.get("stages") is not None:
        options["num_stages"] = request["stages"]
    signature = {name: "*" + TYPES[t] for name, t in zip(function.arg_names, request["types"])}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(signature))}
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(
            ASTSource(function, signature, attrs=aligned),
            target=GPUTarget("cuda", request["arch"], 32),
            options=options,
        )
    cubin = compiled.asm["cubin"]
    # What is launched has no scratch memory beside its buffers: the pointers to it are null.
    scratch = getattr(compiled.metadata, "global_scratch_size", 0) + getattr(compiled.metadata, "profile_scratch_size", 0)
    if scratch:
        raise RuntimeError(f"it needs {scratch} bytes of scratch memory")
    return {
        "cubin": base64.b64encode(cubin).decode(),
        "shared_bytes": compiled.metadata.shared,
        "parameters": parameters(compiled.asm["ptx"]),
        "sass": sass(folder, cubin),
        **report(log.getvalue()),
    }


def main():
    try:
        import triton
    except ImportError as e:
        say({"error": str(e)})
        return
    say({"triton": triton.__version__})
    # Triton finds a function's source by its file, and caches by it: a fresh folder for each.
    for line in sys.stdin:
        try:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["TRITON_CACHE_DIR"] = os.path.join(folder, "cache")
                say(build(json.loads(line), folder))
        except Exception as e:
            say({"error": f"{type(e).__name__}: {e}"})


main()
