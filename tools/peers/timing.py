"""Times a launch as benches/kernels does: a graph of 20 to 200 launches, replayed between two events, over and over."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

SAMPLE_US = 4e3
ALL_US = 2e5
# Operands rotate through so much memory at the least, several times the L2 of any GPU.
ROTATE_BYTES = 1_200_000_000


class Skipped(Exception):
    """Why there is no peer for a shape."""


@dataclass
class Peer:
    """`launch(i)` issues launch i, whose large operands rotate with i; `check` raises unless launch 0 gave what it should."""

    launch: Callable[[int], object]
    check: Callable[[], None]
    # How it was chosen, for the record.
    note: str = ""


def on_gpu() -> bool:
    return torch.cuda.is_available()


def place() -> torch.device:
    return torch.device("cuda" if on_gpu() else "cpu")


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device=place(), dtype=dtype)


def copies(num_bytes: int) -> int:
    """How many operands of that size rotate."""
    if not on_gpu():
        return 2
    return max(1, min(64, ROTATE_BYTES // max(1, num_bytes)))


def near(got: torch.Tensor, want: torch.Tensor, what: str) -> None:
    """As `near` of benches/kernels/measure.rs."""
    got, want = got.float(), want.float()
    limit = 0.01 * (want.abs() + want.abs().max())
    if not bool(((got - want).abs() <= limit).all()):
        worst = float(((got - want).abs() - limit).max())
        raise AssertionError(f"{what}: off by {worst:.3g} more than it may be")


def quantiles(times: list[float]) -> dict[str, float]:
    times = sorted(times)
    at = lambda q: times[round((len(times) - 1) * q)]
    return {"median_us": at(0.5), "p10_us": at(0.1), "p90_us": at(0.9), "samples": len(times)}


def time_peer(peer: Peer) -> dict[str, float]:
    """Quantiles of microseconds a launch."""
    peer.launch(0)
    if not on_gpu():
        return quantiles([host_us(peer.launch, i) for i in range(5)])
    torch.cuda.synchronize()
    once = min(span_us(lambda: peer.launch(1)) for _ in range(3))
    launches = int(max(20, min(200, SAMPLE_US / once)))
    graph = captured(peer.launch, launches)
    sample = lambda: span_us(graph.replay) / launches
    warm = sample()
    samples = int(max(5, min(50, ALL_US / (warm * launches))))
    return quantiles([sample() for _ in range(samples)]) | {"launches_per_sample": launches}


def captured(launch: Callable[[int], object], launches: int) -> "torch.cuda.CUDAGraph":
    # Not `torch.cuda.graph`, which may collect garbage at every capture: cuBLASLt alone wants a hundred for a shape.
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            for i in range(launches):
                launch(i)
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


def span_us(work: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return max(0.01, start.elapsed_time(end) * 1e3)


def host_us(launch: Callable[[int], object], i: int) -> float:
    start = time.perf_counter()
    launch(i)
    return (time.perf_counter() - start) * 1e6
