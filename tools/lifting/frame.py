"""Where the small residual stream lies in the large one."""

import torch
from torch import Tensor


class Frame:
    """y = basis @ [x ; alpha]: an orthonormal basis [H, h + 1] of the subspace that the lifted stream never leaves.

    Only these columns of an H x H rotation ever meet live weights, so a thin QR of h + 1 Gaussian columns stands for all of it: what
    reads or writes the other directions is random already, and a rotation would leave its law as it is. Float64 throughout.
    """

    def __init__(self, big_hidden: int, hidden: int, generator: torch.Generator | None, device: torch.device):
        """Without a generator the stream is not rotated: channels 0 to h - 1, and the constant in channel h."""
        self.scale = (hidden / big_hidden) ** 0.5  # of the large norm's output against the small one's
        if generator is None:
            self.basis = torch.eye(big_hidden, hidden + 1, dtype=torch.float64, device=device)
        else:
            gaussian = torch.randn(
                big_hidden, hidden + 1, generator=generator, dtype=torch.float64, device=generator.device
            ).to(device)
            self.basis = torch.linalg.qr(gaussian).Q.contiguous()
        self.stream, self.constant = self.basis[:, :-1], self.basis[:, -1]

    def write(self, columns: Tensor) -> Tensor:
        """[h, n] that writes to the small stream -> [H, n]."""
        return self.stream @ columns.double()

    def read(self, rows: Tensor, gain: Tensor) -> Tensor:
        """[n, h] that reads the small stream behind a norm with `gain` [h] -> [n, H] behind the large norm with gains of one."""
        return self.scale * (rows.double() * gain.double()) @ self.stream.T

    def away(self, rows: Tensor) -> Tensor:
        """[n, H] without what it would read of a lifted stream: dense rows whose products are zero but for rounding."""
        basis = self.basis.to(rows.dtype)
        return rows - (rows @ basis) @ basis.T
