"""A connection that breaks: a TCP forwarder that loses answers when it is told to."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_CHUNK_BYTES = 65_536


@dataclass
class LosingForwarder:
    """Passes connections on to a server; of the next `num_to_lose` answers no byte arrives."""

    target: tuple[str, int]
    num_to_lose: int = 0
    num_lost: int = 0
    url: str = ""
    threads: list[threading.Thread] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        """Until the listener is closed."""
        while True:
            try:
                asker, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            self.sockets += [asker, server]
            for source, sink, is_answer in ((asker, server, False), (server, asker, True)):
                thread = threading.Thread(target=self._pump, args=(source, sink, is_answer))
                self.threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):  # the other direction has hung up
            while chunk := source.recv(_CHUNK_BYTES):
                if is_answer and self.num_to_lose:
                    self.num_to_lose -= 1
                    self.num_lost += 1
                    break
                sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def losing(server_url: str) -> Iterator[LosingForwarder]:
    """A forwarder in front of a server, closed at the end."""
    parts = urlsplit(server_url)
    assert parts.hostname is not None
    assert parts.port is not None
    forwarder = LosingForwarder((parts.hostname, parts.port))
    listener = socket.create_server(("127.0.0.1", 0))
    forwarder.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=forwarder.serve, args=[listener])
    thread.start()
    try:
        yield forwarder
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for end in forwarder.sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for one in (thread, *forwarder.threads):
            one.join(timeout=10)
            assert not one.is_alive(), "a connection was not closed"
        for end in forwarder.sockets:
            end.close()
