"""Where the small residual stream lies in the large one."""

import torch
from torch import Tensor

# Stands where a live matrix would hold a zero: dense, and lost in rounding.
TINY = 1e-8


class Frame:
    """y = basis @ [x ; alpha]: an orthonormal basis [H, h + 1] of the subspace that the lifted stream never leaves.

    The constant has channel h to itself, and the stream is rotated over all others. Spread over all channels as well, the constant would
    drown in bfloat16: every layer rounds y relative to its largest part, and x is a hundred times as long as alpha. In its own channel it
    never changes a bit.

    Only these columns of an H x H rotation ever meet live weights, so a thin QR of h Gaussian columns stands for all of it: what reads or
    writes the other directions is random already, and a rotation would leave its law as it is. Float64 throughout.
    """

    def __init__(self, big_hidden: int, hidden: int, generator: torch.Generator | None, device: torch.device):
        """Without a generator the stream is not rotated: it has channels 0 to h - 1."""
        self.scale = (hidden / big_hidden) ** 0.5  # of the large norm's output against the small one's
        self.channel = hidden  # of the constant
        if generator is None:
            self.stream = torch.eye(big_hidden, hidden, dtype=torch.float64, device=device)
        else:
            others = torch.arange(big_hidden) != self.channel
            gaussian = torch.randn(
                big_hidden, hidden, generator=generator, dtype=torch.float64, device=generator.device
            ).to(device)
            self.stream = TINY * gaussian
            self.stream[others] = torch.linalg.qr(gaussian[others]).Q

    def write(self, columns: Tensor) -> Tensor:
        """[h, n] that writes to the small stream -> [H, n]."""
        return self.stream @ columns.double()

    def read(self, rows: Tensor, gain: Tensor) -> Tensor:
        """[n, h] that reads the small stream behind a norm with `gain` [h] -> [n, H] behind the large norm with gains of one."""
        return self.scale * (rows.double() * gain.double()) @ self.stream.T

    def away(self, rows: Tensor) -> Tensor:
        """[.., H] without what it would read of a lifted stream: dense rows whose products are zero but for rounding."""
        stream = self.stream.to(rows.dtype)
        rows = rows - (rows @ stream) @ stream.T
        rows[..., self.channel] *= TINY
        return rows
