"""Which request is sent next, to which server, and how many at once.

`plan` decides, with `queue`, `servers`, `concurrency`, `blame` and `tail`, without waiting and without a network.
`joining` checks the servers, `input_queue` reads the input and `workers` send the requests; all wait in the
`scheduler`. `outcomes` records what comes of a row, and `background` runs what goes on beside the workers: renewing the
lock, and closing the night's window.
"""
