"""Imported last by the server that starts decoding processes: it takes Ctrl-C's block from the server.

The block keeps Ctrl-C off the seconds in which the server imports torch. All that a server starts inherits it, also what
the program starts there for ends of its own, which Ctrl-C is to reach as ever.
"""

import signal

_before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # so that a Ctrl-C of those seconds is dropped, not raised late
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
signal.signal(signal.SIGINT, _before)
