"""What the worker processes of `test_parallel.py` do; they import this alone, and none of the libraries."""

import os
import time

from dp2osr.errors import UserError


def square(number):
    time.sleep(0.01 * (4 - number))  # the first takes longest
    return number * number


def refuse(number):
    raise UserError(f"{number} is refused")


def die(number):
    os._exit(1)


def tell(number):
    os.write(1, f"{os.getpid()}\n".encode())  # in one piece: the workers share the pipe
    time.sleep(600)
