"""``benchmarks`` is no part of the installed package: it is imported from the checkout, wherever pytest was started."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
