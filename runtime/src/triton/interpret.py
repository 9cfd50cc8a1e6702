"""Runs some programs of a Triton kernel on Triton's interpreter: no GPU and no torch.

    interpret.py FOLDER

FOLDER holds kernel.py, request.json ({"name", "grid", "programs", "seconds", "params": [{"elem", "buffer"}]}) and the bytes of
buffer N in the file N; parameters may share one. Programs run in the order given until the time is over; one at least does.
The files then hold what was left in the buffers. Prints {"programs": how many ran} or {"error": TEXT}.
"""
import importlib.util
import json
import os
import sys
import time

os.environ["TRITON_INTERPRET"] = "1"


class Tensor:
    """What Triton's interpreter asks of a torch tensor, over a numpy array."""

    def __init__(self, data, dtype):
        self.data, self.dtype = data, dtype

    def data_ptr(self):
        return self.data.ctypes.data


def load(folder, request):
    """The buffers as arrays. The interpreter takes the bits of bf16 for integers: they are f32 here."""
    import numpy as np

    kinds = {"f32": np.float32, "f16": np.float16, "i32": np.int32, "u32": np.uint32, "bf16": np.uint16}
    buffers = {}
    for p in request["params"]:
        if p["buffer"] in buffers:
            continue
        data = np.fromfile(os.path.join(folder, str(p["buffer"])), dtype=kinds[p["elem"]])
        if p["elem"] == "bf16":
            data = (data.astype(np.uint32) << 16).view(np.float32)
        buffers[p["buffer"]] = (data, p["elem"])
    return buffers


def store(folder, buffers):
    """Writes them back; f32 is rounded to the nearest bf16, ties to even."""
    import numpy as np

    for name, (data, elem) in buffers.items():
        if elem == "bf16":
            bits = data.view(np.uint32)
            rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            data = np.where(np.isnan(data), np.uint16(0xFFFF), rounded)
        data.tofile(os.path.join(folder, str(name)))


def run(folder):
    with open(os.path.join(folder, "request.json")) as file:
        request = json.load(file)
    path = os.path.join(folder, "kernel.py")
    if any(p["elem"] == "bf16" for p in request["params"]):
        with open(path) as file:
            text = file.read().replace("tl.bfloat16", "tl.float32")
        with open(path, "w") as file:
            file.write(text)
    from triton.runtime import interpreter

    spec = importlib.util.spec_from_file_location("kernel", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel = getattr(module, request["name"])
    if len(kernel.arg_names) != len(request["params"]):
        raise RuntimeError(f"it takes {len(kernel.arg_names)} parameters, its launch gives {len(request['params'])}")
    buffers = load(folder, request)
    names = {"f32": "float32", "bf16": "float32", "f16": "float16", "i32": "int32", "u32": "uint32"}
    tensors = [Tensor(buffers[p["buffer"]][0], names[p["elem"]]) for p in request["params"]]
    function = kernel.rewrite()
    scope = interpreter._patch_lang(function)
    done, start = 0, time.monotonic()
    try:
        args = {n: interpreter._implicit_cvt(t) for n, t in zip(kernel.arg_names, tensors)}
        width, height, depth = request["grid"]
        interpreter.interpreter_builder.set_grid_dim(width, height, depth)
        for number in request["programs"]:
            x, y, z = number % width, number // width % height, number // width // height
            interpreter.interpreter_builder.set_grid_idx(x, y, z)
            function(**args)
            done += 1
            if time.monotonic() - start > request["seconds"]:
                break
    finally:
        scope.restore()
    store(folder, buffers)
    return {"programs": done}


try:
    answer = run(sys.argv[1])
except Exception as e:
    answer = {"error": f"{type(e).__name__}: {e}"}
print(json.dumps(answer))
