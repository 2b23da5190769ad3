"""No test reaches the network, nor does a process it starts: this folder is put first on PYTHONPATH, and Python imports
`sitecustomize` at its start. Addresses of this machine and unix sockets stay open."""

import ipaddress
import socket
import sys

sys.modules.setdefault("rfc3987_syntax", None)  # three seconds of jsonschema's start, see mmkit.notebooks

_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


def _refuse_outside(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    try:
        inside = ipaddress.ip_address(name.split("%")[0]).is_loopback
    except ValueError:
        inside = name in ("localhost", socket.gethostname())
    if not inside:
        raise OSError(f"the tests have no network: {name} is not this machine")


def _guarded(original):
    def call(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_outside(address[0])
        return original(self, address)

    return call


def _guarded_getaddrinfo(host, *args, **options):
    _refuse_outside(host)
    return _getaddrinfo(host, *args, **options)


socket.socket.connect, socket.socket.connect_ex = _guarded(_connect), _guarded(_connect_ex)
socket.getaddrinfo = _guarded_getaddrinfo
