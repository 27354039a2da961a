"""Reference of kernels.splitmix64."""

from rota.arguments import as_count, as_seed, as_uint64

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    """Return the 64-bit mix of z."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


class SplitMix64:
    """A stream of 64-bit numbers, fixed for ever by `seed` in [0, 2**64)."""

    def __init__(self, seed: int | None = None) -> None:
        self.state = as_seed(seed)

    def next(self) -> int:
        """Return the next number, in [0, 2**64). O(1)."""
        self.state = state = self.state + GAMMA & MASK
        return mix(state)

    def below(self, bound: int, /) -> int:
        """Return an unbiased number in [0, bound), 1 <= bound < 2**64. O(1) expected."""
        bound = as_uint64("bound", bound, least=1)
        while True:
            product = self.next() * bound
            if product & MASK >= 2**64 % bound:
                return product >> 64

    def skip(self, n: int, /) -> None:
        """Pass over n numbers. O(1)."""
        self.state = self.state + as_count(n) * GAMMA & MASK
