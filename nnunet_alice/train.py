"""``torchrun ... -m nnunet_alice.train``: the command ``nnunet_alice train``, as a module that torchrun can start."""

import sys

from nnunet_alice.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
