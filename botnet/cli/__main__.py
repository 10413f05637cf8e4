"""``python -m botnet.cli``, for torchrun and machines without the command on their path."""

import sys

from botnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
