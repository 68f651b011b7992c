"""Sizes and durations as text."""


def gigabytes(size: float) -> str:
    """Format bytes as GB of 10⁹ bytes, less than 0.01 GB as MB.

    >>> gigabytes(23_456_000_000), gigabytes(12_000_000), gigabytes(123_000)
    ('23.5 GB', '0.01 GB', '0.12 MB')
    """
    if 0 < size < 1e7:
        return f"{size / 1e6:.2f} MB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e9:.2f} GB"


def duration(seconds: float) -> str:
    """Format seconds as seconds, minutes or hours.

    >>> duration(3.21), duration(75), duration(3700)
    ('3.2 s', '1 min 15 s', '1 h 01 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
