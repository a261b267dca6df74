"""What a server and the process that watches it tell each other over a Unix socket.

The watching process sends a byte with a listener (SCM_RIGHTS, unix(7)); the server answers ACCEPTS
once it accepts connections there, and LEFT when it has been told to end and accepts them no more.
"""

from __future__ import annotations

import socket

ACCEPTS, LEFT = b"1", b"0"


def send_listener(control: socket.socket, listener: socket.socket) -> None:
    """Have the server accept the connections of a listener, too."""
    try:
        socket.send_fds(control, [b"l"], [listener.fileno()])
    except OSError:  # the server has just ended, as the next look at it finds
        return


def receive_listener(control: socket.socket) -> socket.socket | None:
    """What `send_listener` sent; None: the other end is closed."""
    _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    return socket.socket(fileno=descriptors[0]) if descriptors else None


def tell(control: socket.socket, word: bytes) -> None:
    """Send ACCEPTS or LEFT."""
    try:
        control.send(word)
    except OSError:  # nobody watches any more, as the next look finds
        return
