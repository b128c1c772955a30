"""What PyTorch has for linear layers, sampling and the drafter's top-k."""

import torch
import torch.nn.functional as F

from .timing import Peer, copies, near, normal, place


def gated(y: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, of gate and up side by side."""
    gate, up = y.chunk(2, -1)
    return F.silu(gate).mul_(up)


def linear(shape: dict) -> Peer:
    """`torch.matmul`; into f32 logits, or through the gate (`gated`), by further kernels where ours does it at once."""
    rows, n, k = shape["rows"], shape["n"], shape["k"]
    weights = [normal(n, k) for _ in range(copies(2 * n * k))]
    x, y = normal(rows, k), torch.empty(rows, n, device=place(), dtype=torch.bfloat16)
    logits = torch.empty(rows, n, device=place()) if shape["out"] == "f32" else None

    def launch(i: int) -> None:
        torch.matmul(x, weights[i % len(weights)].T, out=y)
        if logits is not None:
            logits.copy_(y)
        if shape.get("gated"):
            gated(y)

    check = lambda: near(y, x.float() @ weights[0].float().T, "torch.matmul")
    return Peer(launch, check)


def matmul(shape: dict) -> Peer:
    """A square product, the ceiling of arithmetic: `torch.matmul`."""
    a, b = normal(shape["m"], shape["k"]), normal(shape["n"], shape["k"])
    out = torch.empty(shape["m"], shape["n"], device=place(), dtype=torch.bfloat16)
    check = lambda: near(out[:64], a[:64].float() @ b.float().T, "torch.matmul")
    return Peer(lambda i: torch.matmul(a, b.T, out=out), check)


def sample(shape: dict) -> Peer:
    """Greedy: argmax. Else softmax and the exponential trick; top-p sorts, as its definition does, top-k keeps the best."""
    logits = normal(shape["rows"], shape["vocab"], dtype=torch.float32)
    temperature, top_p, top_k = shape["temperature"], shape["top_p"], shape["top_k"]
    tokens = torch.empty(shape["rows"], device=place(), dtype=torch.int64)

    def draw(probabilities: torch.Tensor) -> torch.Tensor:
        return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)

    def launch(i: int) -> None:
        if temperature == 0:
            torch.argmax(logits, -1, out=tokens)
            return
        probabilities = torch.softmax(logits / temperature, -1)
        if top_p < 1:
            ordered, index = probabilities.sort(-1, descending=True)
            ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
            tokens.copy_(index.gather(-1, draw(ordered)[:, None])[:, 0])
        elif top_k > 0:
            best, index = probabilities.topk(top_k, -1)
            tokens.copy_(index.gather(-1, draw(best)[:, None])[:, 0])
        else:
            tokens.copy_(draw(probabilities))

    def check() -> None:
        if not bool(((tokens >= 0) & (tokens < shape["vocab"])).all()):
            raise AssertionError("tokens out of range")
        if temperature == 0 and not bool((tokens == logits.argmax(-1)).all()):
            raise AssertionError("argmax of something else")

    return Peer(launch, check)


def topk(shape: dict) -> Peer:
    """log-softmax, then top-k."""
    logits = normal(shape["rows"], shape["vocab"], dtype=torch.float32)
    result: list[torch.Tensor] = []

    def launch(i: int) -> None:
        result[:] = torch.topk(torch.log_softmax(logits, -1), shape["k"], -1)

    def check() -> None:
        want = torch.log_softmax(logits.double(), -1).topk(shape["k"], -1).values
        near(result[0], want, "topk")

    return Peer(launch, check)
