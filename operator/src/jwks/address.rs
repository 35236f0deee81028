//! Which addresses keys may be fetched from: an address goes in, why it may not be dialled comes out. Pure.
//!
//! Whoever may write a RequestAuthentication names a URL that the operator then dials, from inside the cluster
//! and with its network's trust. So everything that is not the public Internet is refused unless the
//! installation names it. What is judged is the address that is really dialled, never the name.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 ranges that are not the public Internet (IANA special-purpose registry, RFC 6890), each with its word.
const V4: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "of this host"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "of a shared network"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    // Azure's metadata and DNS, which looks like any public address.
    (Ipv4Addr::new(168, 63, 129, 16), 32, "of a metadata service"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "reserved"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "reserved"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "reserved"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// IPv6: only global unicast is public, and of it these are not. What carries an IPv4 address inside is judged
/// by that one where the translation is the network's (NAT64), and refused where it is a tunnel's.
const V6: &[(Ipv6Addr, u8, &str)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "reserved"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "reserved"),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "of a tunnel"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "reserved"),
];

/// Why `ip` may not be dialled; `None` where it may: it is public and none of the cluster's, or the installation
/// allows it.
pub(super) fn refusal(ip: IpAddr, allowed: &[IpNet], cluster: &[IpNet]) -> Option<&'static str> {
    let ip = ip.to_canonical();
    if allowed.iter().any(|range| range.contains(&ip)) {
        return None;
    }
    if cluster.iter().any(|range| range.contains(&ip)) {
        return Some("of the cluster");
    }
    match ip {
        IpAddr::V4(ip) => within(ip, V4),
        IpAddr::V6(ip) => match embedded(ip) {
            Some(inner) => refusal(IpAddr::V4(inner), allowed, cluster),
            None => special(ip),
        },
    }
}

fn within(ip: Ipv4Addr, table: &[(Ipv4Addr, u8, &'static str)]) -> Option<&'static str> {
    let matches = |network: &Ipv4Addr, length: u8| {
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        (ip.to_bits() ^ network.to_bits()) & mask == 0
    };
    table.iter().find(|(network, length, _)| matches(network, *length)).map(|(_, _, word)| *word)
}

/// The IPv4 address behind a NAT64 address with the well-known prefix (RFC 6052).
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Some(Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low)))
        }
        _ => None,
    }
}

fn special(ip: Ipv6Addr) -> Option<&'static str> {
    let bits = ip.to_bits();
    // 2000::/3
    if bits >> 125 != 1 {
        return Some(match bits >> 118 {
            _ if ip.is_loopback() => "loopback",
            _ if ip.is_multicast() => "multicast",
            // fe80::/10, and the site-local fec0::/10 of old.
            0x3fa | 0x3fb => "link-local",
            _ if ip.is_unique_local() => "private",
            _ => "reserved",
        });
    }
    let matches =
        |network: &Ipv6Addr, length: u8| (bits ^ network.to_bits()) >> (128 - u32::from(length)) == 0;
    V6.iter().find(|(network, length, _)| matches(network, *length)).map(|(_, _, word)| *word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn judge(ip: &str, allowed: &[&str]) -> Option<&'static str> {
        refusal(ip.parse().unwrap(), &nets(allowed), &nets(&["8.8.0.0/16", "2a00:1::/32"]))
    }

    #[test]
    fn only_public_addresses_outside_the_cluster_may_be_dialled() {
        for (ip, word) in [
            ("1.1.1.1", None),
            ("172.15.255.255", None),
            ("172.32.0.0", None),
            ("100.63.255.255", None),
            ("168.63.129.17", None),
            ("198.20.0.0", None),
            ("2606:4700:4700::1111", None),
            ("64:ff9b::101:101", None),
            ("8.8.8.8", Some("of the cluster")),
            ("2a00:1::7", Some("of the cluster")),
            ("0.0.0.0", Some("of this host")),
            ("10.255.0.1", Some("private")),
            ("100.100.100.200", Some("of a shared network")),
            ("127.8.8.8", Some("loopback")),
            ("168.63.129.16", Some("of a metadata service")),
            ("169.254.169.254", Some("link-local")),
            ("172.16.0.1", Some("private")),
            ("172.31.255.255", Some("private")),
            ("192.168.1.1", Some("private")),
            ("224.0.0.1", Some("multicast")),
            ("255.255.255.255", Some("reserved")),
            ("::", Some("reserved")),
            ("::1", Some("loopback")),
            ("::ffff:10.0.0.1", Some("private")),
            ("::10.0.0.1", Some("reserved")),
            ("64:ff9b::a00:1", Some("private")),
            ("64:ff9b::808:808", Some("of the cluster")),
            ("64:ff9b:1::1", Some("reserved")),
            ("fd00:ec2::254", Some("private")),
            ("fc00::1", Some("private")),
            ("fe80::1", Some("link-local")),
            ("febf::1", Some("link-local")),
            ("fec0::1", Some("link-local")),
            ("ff02::1", Some("multicast")),
            ("2001:db8::1", Some("reserved")),
            ("2001::1", Some("reserved")),
            ("2002:a00:1::", Some("of a tunnel")),
        ] {
            assert_eq!(judge(ip, &[]), word, "{ip}");
        }
    }

    #[test]
    fn the_installation_may_name_ranges_and_nothing_else_opens() {
        for (ip, open) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("64:ff9b::a01:203", true),
            ("8.8.8.8", true),
            ("10.2.0.0", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(judge(ip, &["10.1.0.0/16", "8.8.8.8/32"]).is_none(), open, "{ip}");
        }
    }
}
