"""What is asked of a host that looks public."""

from __future__ import annotations

import socket

import pytest

from ekiben.errors import BadInput
from services.outbound.http_exchange import Exchange, Network, parse
from tests.services.outbound.addresses import PUBLIC, connect_as_from_afar


@pytest.mark.parametrize("of_this_machine", [True, False])
@pytest.mark.parametrize("allow_private", [True, False])
def test_a_public_address_of_this_machine_is_private(of_this_machine: bool, allow_private: bool) -> None:
    """As a server has it whose interface carries its public address: both ends of the connection do."""

    def connect(address: str, port: int, timeout_s: float) -> socket.socket:
        assert address == PUBLIC
        if not of_this_machine:
            return connect_as_from_afar(port, timeout_s)
        return socket.create_connection(("127.0.0.1", port), timeout_s)

    with socket.create_server(("127.0.0.1", 0)) as server:
        network = Network(lambda host, port: [PUBLIC], connect)
        exchange = Exchange.begin(0.5, allow_private=allow_private, network=network)
        url = parse(f"http://me.example:{server.getsockname()[1]}/admin")
        with pytest.raises(BadInput) as refused, exchange.response("GET", url, {}):
            pass
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            asked = connection.recv(100)
    if of_this_machine and not allow_private:
        assert (refused.value.code, asked) == ("url_private", b"")
        assert "'me.example'" in refused.value.message
    else:  # it was asked, and does not answer
        assert (refused.value.code, asked[:10]) == ("url_timeout", b"GET /admin")
