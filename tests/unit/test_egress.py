"""The table of addresses, and that the guard looks at what a name resolves to."""

import socket

import pytest

from egress.guard import EgressGuard
from media.limits import Limits
from moorage.errors import DownloadRefused

LOOPBACK = ["127.0.0.1", "127.0.0.2", "127.1.2.3", "127.255.255.254", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1"]
PRIVATE = [
    "10.0.0.0", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.20.10.1", "172.31.255.255", "192.168.0.1",
    "192.168.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255", "fc00::1", "fd00::1", "fd00:ec2::254",
    "fd20:ce::254", "fdff:ffff::1", "fec0::1", "feff::1", "::ffff:10.0.0.1", "::ffff:192.168.1.1", "::ffff:100.64.0.1",
]  # fmt: skip
METADATA = [
    "169.254.169.254", "169.254.170.2", "169.254.0.1", "169.254.255.255", "168.63.129.16", "192.0.0.192",
    "fe80::a9fe:a9fe", "fe80::1", "febf::1", "fe80::1%eth0", "::ffff:169.254.169.254", "::ffff:168.63.129.16",
    "::ffff:192.0.0.192",
]  # fmt: skip
SPECIAL = [
    "0.0.0.0", "0.1.2.3", "192.0.0.1", "192.0.0.8", "192.0.0.9", "192.0.0.170", "192.0.2.1", "198.51.100.7",
    "203.0.113.9", "198.18.0.1", "198.19.255.255", "192.88.99.1", "192.31.196.1", "192.52.193.1", "192.175.48.1",
    "224.0.0.1", "224.0.0.251", "239.255.255.250", "240.0.0.1", "250.1.2.3", "255.255.255.255", "::", "100::1",
    "2001:db8::1", "3fff::1", "5f00::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:1::1", "2620:4f:8000::1",
    "ff02::1", "ff0e::1", "ff05::2", "4000::1", "e000::1", "200::1", "::ffff:224.0.0.1", "::ffff:0.0.0.0",
]  # fmt: skip
EMBEDDED = [
    "::127.0.0.1", "::8.8.8.8", "::10.0.0.1", "::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8", "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1", "64:ff9b::192.0.0.192", "64:ff9b:1::8.8.8.8", "64:ff9b:1::127.0.0.1",
    "2002:7f00:1::1", "2002:a9fe:a9fe::1", "2002:808:808::1", "2001::1", "2001:0:7f00:1::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2a00:1450::5efe:7f00:1", "2a00:1450::200:5efe:a9fe:a9fe",
    "fe80::5efe:a00:1",
]  # fmt: skip
REFUSED = [*LOOPBACK, *PRIVATE, *METADATA, *SPECIAL, *EMBEDDED, "", "localhost", "1.2.3", "0177.0.0.1", "2130706433"]
ALLOWED = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1", "126.255.255.255", "128.0.0.1",
    "168.63.129.15", "169.253.255.255", "169.255.0.1", "172.15.255.255", "172.32.0.1", "191.255.255.255", "192.0.1.1",
    "192.0.3.1", "192.167.255.255", "192.169.0.1", "198.17.255.255", "198.20.0.1", "203.0.112.1", "223.255.255.255",
    "2606:4700:4700::1111", "2a00:1450:4001:800::200e", "2001:4860:4860::8888", "2003::1", "2001:200::1",
    "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "64:ff9b::101:101",
]  # fmt: skip


@pytest.mark.parametrize("ip", REFUSED)
def test_an_address_that_is_not_public_is_refused_with_its_reason(ip):
    """One hole in the table opens metadata services and our own servers to a provider's URL."""
    assert EgressGuard().refusal_reason(ip, 443)


@pytest.mark.parametrize("ip", ALLOWED)
def test_a_public_address_is_let_through(ip):
    """Neighbours of the refused ranges are where content networks live."""
    assert EgressGuard().refusal_reason(ip, 443) is None


def test_an_exception_opens_one_address_and_port():
    """The stand-in provider lives on one port of loopback; everything beside it stays shut."""
    egress = EgressGuard(["127.0.0.1:8081", "[::1]:8082"])

    assert egress.refusal_reason("127.0.0.1", 8081) is None
    assert egress.refusal_reason("0:0:0:0:0:0:0:1", 8082) is None
    assert egress.refusal_reason("127.0.0.1", 8082)
    assert egress.refusal_reason("127.0.0.2", 8081)
    assert egress.refusal_reason("::ffff:127.0.0.1", 8081)


def answering(*ips):
    return lambda host, port, *_: [
        (socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ips
    ]


@pytest.mark.parametrize("ips", [["10.0.0.5"], ["169.254.169.254", "fd00::1"], ["::ffff:127.0.0.1"], []])
def test_a_name_that_resolves_to_private_addresses_is_refused(ips):
    """A host name proves nothing; an attacker's name server returns any address."""
    session = EgressGuard(resolve=answering(*ips)).new_session(Limits())

    with pytest.raises(DownloadRefused) as caught:
        session.get("http://harmless.example/a.png")

    assert set(caught.value.facts["refused"]) == set(ips)
    assert all(ip in str(caught.value) for ip in ips)


@pytest.mark.parametrize(
    "url", ["http://localhost/", "http://127.0.0.1/", "http://[::1]/", "http://0x7f.1/", "http://2130706433/"]
)
def test_every_spelling_of_loopback_is_refused_without_a_hook(url):
    """The resolver of the system understands octal, hex and decimal forms; the guard reads its answer."""
    with pytest.raises(DownloadRefused, match="loopback"):
        EgressGuard().new_session(Limits()).get(url)


def test_a_mixed_answer_uses_only_the_allowed_addresses():
    """A name with one private address among its own must still work, over the others."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        egress = EgressGuard([f"127.0.0.1:{port}"], resolve=answering("10.0.0.1", "127.0.0.1"))
        conn = (
            egress.new_session(Limits())
            .get_adapter("http://")
            .poolmanager.connection_from_url(f"http://a.example:{port}")
            ._new_conn()
        )

        sock = egress.connect(conn, 1.0)

        assert sock.getpeername() == ("127.0.0.1", port)
        sock.close()


def test_the_next_address_is_tried_when_the_first_does_not_answer():
    """Content networks publish several addresses so that one may be down."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        allow = [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]
        egress = EgressGuard(allow, resolve=answering("127.0.0.2", "127.0.0.1"))
        conn = (
            egress.new_session(Limits())
            .get_adapter("http://")
            .poolmanager.connection_from_url(f"http://a.example:{port}")
            ._new_conn()
        )

        sock = egress.connect(conn, 1.0)

        assert sock.getpeername() == ("127.0.0.1", port)
        sock.close()


def test_the_environment_gives_a_session_nothing(monkeypatch):
    """A proxy from the environment would connect where the guard does not look."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    session = EgressGuard().new_session(Limits())

    with pytest.raises(DownloadRefused, match="loopback"):
        session.get("http://127.0.0.1:2/")

    assert session.headers["Accept-Encoding"] == "identity"
