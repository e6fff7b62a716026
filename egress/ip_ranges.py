"""
Address ranges that are not public.

`ipaddress.is_global` is not sufficient: its result varies by patch release, and on Python 3.11.7 it is True for
192.0.0.192 (a cloud's metadata service), multicast, site-local, NAT64 and 6to4 addresses.
Sources: the IANA special-purpose registries for IPv4 and IPv6 (RFC 6890 and its successors), and the addresses of
metadata services outside them.
"""

import ipaddress

# The first match counts. Of IPv6 only 2000::/3 is allocated; the rows outside it only give a better reason.
_RANGES = [
    (ipaddress.ip_network(network), reason)
    for reason, networks in (
        ("this network", "0.0.0.0/8"),
        ("private", "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7"),
        ("shared address space of carriers", "100.64.0.0/10"),
        ("loopback", "127.0.0.0/8 ::1/128"),
        ("cloud platform service", "168.63.129.16/32"),
        ("link-local, cloud metadata", "169.254.0.0/16"),
        ("link-local", "fe80::/10"),
        ("site-local", "fec0::/10"),
        ("protocol assignments, cloud metadata", "192.0.0.0/24"),
        ("Teredo", "2001::/32"),
        ("protocol assignments", "2001::/23"),
        ("documentation", "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 3fff::/20"),
        ("AS112", "192.31.196.0/24 192.175.48.0/24 2620:4f:8000::/48"),
        ("AMT relay", "192.52.193.0/24"),
        ("6to4 relay", "192.88.99.0/24"),
        ("6to4", "2002::/16"),
        ("benchmarking", "198.18.0.0/15"),
        ("multicast", "224.0.0.0/4 ff00::/8"),
        ("reserved", "240.0.0.0/4"),
        ("unspecified", "::/128"),
        ("embeds an IPv4 address", "::/96 ::ffff:0:0:0/96"),
        ("local NAT64", "64:ff9b:1::/48"),
        ("discard only", "100::/64"),
        ("segment routing", "5f00::/16"),
    )
    for network in networks.split()
]
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # the upper half of an interface identifier, RFC 5214


def classify_nonpublic(ip: str) -> str | None:
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return "not an address"
    if address.version == 6:
        if address in _MAPPED or address in _NAT64:  # DNS64 returns the latter for every IPv4 server
            return classify_nonpublic(str(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)))
        if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
            return "embeds an IPv4 address"
    range_name = next((reason for network, reason in _RANGES if address in network), None)
    return range_name or (None if address.version == 4 or address in _GLOBAL_V6 else "reserved")
