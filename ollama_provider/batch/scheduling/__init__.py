"""Which request is sent next, and how many at once.

`plan` and `concurrency` decide, without waiting and without a network. `input_queue` reads the input and `workers` send
the requests; both wait in the `scheduler`. `outcomes` records what comes of a row, and `background` runs what goes on
beside the workers: renewing the lock, and closing the night's window.
"""
