"""
Address ranges that are not public: an own table.

`ipaddress.is_global` is not sufficient: its result varies by patch release, and on Python 3.11.7 it is True for
192.0.0.192 (a cloud's metadata service), multicast, site-local, NAT64 and 6to4 addresses.
Sources: the IANA special-purpose registries for IPv4 and IPv6 (RFC 6890 and its successors), and the addresses of
metadata services outside them.
"""

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_V4 = [
    (ipaddress.IPv4Network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared address space of carriers"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "cloud platform service"),
        ("169.254.0.0/16", "link-local, cloud metadata"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignments, cloud metadata"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "AS112"),
        ("192.52.193.0/24", "AMT relay"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "AS112"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
]
# Only 2000::/3 is allocated; the rows outside it only give a better reason.
_V6 = [
    (ipaddress.IPv6Network(network), reason)
    for network, reason in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "embeds an IPv4 address"),
        ("::ffff:0:0:0/96", "embeds an IPv4 address"),
        ("64:ff9b:1::/48", "local NAT64"),
        ("100::/64", "discard only"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "protocol assignments"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "AS112"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
]
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # the upper half of an interface identifier, RFC 5214


def nonpublic_reason(ip: str) -> str | None:
    """Return the reason why an address is not public, or None if it is."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return "not an address"
    return _find_reason(address)


def _find_reason(address: Address) -> str | None:
    if isinstance(address, ipaddress.IPv4Address):
        return next((reason for network, reason in _V4 if address in network), None)
    if address in _MAPPED or address in _NAT64:  # DNS64 returns the latter for every IPv4 server
        return _find_reason(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return "embeds an IPv4 address"
    range_name = next((reason for network, reason in _V6 if address in network), None)
    return range_name or (None if address in _GLOBAL_V6 else "reserved")
