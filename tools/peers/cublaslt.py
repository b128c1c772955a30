"""cuBLASLt with every algorithm that its heuristic names for a shape, the fastest of them kept. PyTorch takes the first.

Row-major y[T, N] = x[T, K] W[N, K]^T is the column-major y^T = W^T' x': cuBLASLt sees W as K x N, transposed, and x as K x T.
Enumerators and the layout of the result are those of cublasLt.h.
"""

import ctypes
from ctypes import POINTER, byref, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p

import torch

from .timing import Peer, Skipped, captured, copies, near, normal, on_gpu, span_us
from .torch_peers import gated

COMPUTE_32F, R_32F, R_16BF = 68, 0, 14
DESC_TRANSA, OP_T = 3, 1
PREF_MAX_WORKSPACE_BYTES = 1
WORKSPACE_BYTES = 64 << 20
# More than the heuristic has been seen to name; what it names beyond these is not tried.
REQUESTED = 100


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", c_uint64 * 8),
        ("workspace_bytes", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    ]


class Library:
    """The calls that are needed, each checked."""

    def __init__(self) -> None:
        for name in ("libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"):
            try:
                self.calls = ctypes.CDLL(name)
                break
            except OSError as error:
                reason = error
        else:
            raise Skipped(f"cuBLASLt does not load: {reason}")
        self.handle = c_void_p()
        self.call("cublasLtCreate", byref(self.handle))
        self.workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self.calls, name)(*arguments)
        if status != 0:
            raise Skipped(f"{name}: status {status}")

    def layout(self, kind: int, rows: int, columns: int) -> c_void_p:
        layout = c_void_p()
        self.call("cublasLtMatrixLayoutCreate", byref(layout), kind, c_uint64(rows), c_uint64(columns), c_int64(rows))
        return layout


class Matmul:
    """One shape: its descriptors, and the algorithms that the heuristic names for it."""

    def __init__(self, library: Library, rows: int, n: int, k: int, out: torch.dtype) -> None:
        self.library = library
        self.desc = c_void_p()
        library.call("cublasLtMatmulDescCreate", byref(self.desc), COMPUTE_32F, R_32F)
        transposed = c_int(OP_T)
        library.call("cublasLtMatmulDescSetAttribute", self.desc, DESC_TRANSA, byref(transposed), c_size_t(4))
        self.w = library.layout(R_16BF, k, n)
        self.x = library.layout(R_16BF, k, rows)
        self.y = library.layout(R_32F if out == torch.float32 else R_16BF, n, rows)
        self.algorithms = self.named()

    def named(self) -> list[Heuristic]:
        preference = c_void_p()
        self.library.call("cublasLtMatmulPreferenceCreate", byref(preference))
        most = c_uint64(WORKSPACE_BYTES)
        self.library.call(
            "cublasLtMatmulPreferenceSetAttribute", preference, PREF_MAX_WORKSPACE_BYTES, byref(most), c_size_t(8)
        )
        results, found = (Heuristic * REQUESTED)(), c_int()
        self.library.call(
            "cublasLtMatmulAlgoGetHeuristic", self.library.handle, self.desc, self.w, self.x, self.y, self.y,
            preference, c_int(REQUESTED), results, byref(found),
        )  # fmt: skip
        self.library.call("cublasLtMatmulPreferenceDestroy", preference)
        return [result for result in results[: found.value] if result.state == 0]

    def run(self, algorithm: Heuristic, w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
        one, zero = c_float(1.0), c_float(0.0)
        pointer = lambda tensor: c_void_p(tensor.data_ptr())
        self.library.call(
            "cublasLtMatmul", self.library.handle, self.desc, byref(one), pointer(w), self.w, pointer(x), self.x,
            byref(zero), pointer(y), self.y, pointer(y), self.y, byref(algorithm),
            pointer(self.library.workspace), c_size_t(WORKSPACE_BYTES),
            c_void_p(torch.cuda.current_stream().cuda_stream),
        )  # fmt: skip


_library: Library | None = None


def linear(shape: dict) -> Peer:
    """The fastest of all algorithms that the heuristic names; behind it PyTorch's kernels for a gate (`gated`)."""
    global _library
    if not on_gpu():
        raise Skipped("cuBLASLt needs a GPU")
    _library = _library or Library()
    rows, n, k = shape["rows"], shape["n"], shape["k"]
    out = torch.float32 if shape["out"] == "f32" else torch.bfloat16
    weights = [normal(n, k) for _ in range(copies(2 * n * k))]
    x, y = normal(rows, k), torch.empty(rows, n, device="cuda", dtype=out)
    matmul = Matmul(_library, rows, n, k, out)

    def seconds(algorithm: Heuristic) -> float:
        launch = lambda i: matmul.run(algorithm, weights[i % len(weights)], x, y)
        launch(0)
        torch.cuda.synchronize()
        # The longer a launch, the fewer are needed to tell algorithms apart.
        graph = captured(launch, max(2, min(20, int(2e9 / (2 * n * k)))))
        graph.replay()
        return min(span_us(graph.replay) for _ in range(2))

    timed = []
    for index, algorithm in enumerate(matmul.algorithms):
        try:
            timed.append((seconds(algorithm), index))
        except Skipped:
            continue  # named, but not for this shape
    if not timed:
        raise Skipped("the heuristic names no algorithm")
    best = min(timed)[1]
    chosen = matmul.algorithms[best]
    check = lambda: near(y, (x.float() @ weights[0].float().T).to(out), "cuBLASLt")
    note = f"algorithm {best + 1} of {len(timed)} that ran"

    def launch(i: int) -> None:
        matmul.run(chosen, weights[i % len(weights)], x, y)
        if shape.get("gated"):
            gated(y)

    return Peer(launch, check, note)
